"""``selfspec-tune``: the commands and the entry point.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from shutil import get_terminal_size
from typing import Annotated, Literal

import typer

from selfspec_tune.cli import exits, output
from selfspec_tune.cli.bench import bench
from selfspec_tune.cli.compare import compare
from selfspec_tune.cli.doctor import doctor
from selfspec_tune.cli.export import export, import_
from selfspec_tune.cli.generate import generate
from selfspec_tune.cli.models import models
from selfspec_tune.cli.reproduce import reproduce
from selfspec_tune.cli.search import search
from selfspec_tune.cli.show import show

_WIDE = 80  # columns that a table of options needs; in fewer it cuts their names
_MARKUP: Literal["rich"] | None = "rich" if get_terminal_size().columns >= _WIDE else None

app = typer.Typer(
    name="selfspec-tune",
    help="Find the layers a language model may skip while drafting for itself, and measure the speedup.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (search, bench, generate, compare, show, export, models, doctor, reproduce):
    app.command()(command)
app.command("import")(import_)


# Other libraries' own switches: their bars and warnings would stand between our lines. What is set already stays.
_QUIET_LIBRARIES = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """The console script."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    output.open_streams()
    exits.heed()
    exits.run(app)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from selfspec_tune import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...

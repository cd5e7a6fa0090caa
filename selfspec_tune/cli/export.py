"""``selfspec-tune export``: a skip set in another project's file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfspec_tune.cli import options
from selfspec_tune.cli.edge import at_edge
from selfspec_tune.dialects import Dialect


@at_edge()
def export(
    source: Annotated[Path, typer.Argument(metavar="SKIP.json", help="skip.json, or any dialect's file with --model.")],
    format: Annotated[Dialect, typer.Option("--format", help="The dialect to write.", show_default=False)],
    task: Annotated[str | None, typer.Option(metavar="T", help="Task, for dialects that key by it.")] = None,
    model: options.ModelOfFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="F", help="File to write.", show_default="standard output")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a skip set in the format of another project."""
    from selfspec_tune.export import export_dialect
    from selfspec_tune.files import write_json_atomic

    value = export_dialect(source, format, task=task, model=model)
    if out is None:
        print(json.dumps(value))
    else:
        write_json_atomic(out, value)

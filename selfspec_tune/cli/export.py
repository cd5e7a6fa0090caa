"""``selfspec-tune export`` and ``import``: skip sets and drafts in other projects' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfspec_tune.cli import options, output
from selfspec_tune.cli.exits import at_edge
from selfspec_tune.draft.dialects import Dialect, split_key
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.export.formats import FORMATS, export_format
from selfspec_tune.requests import GGUF_WEIGHTS, ExportRequest

_PANEL_DRAFT = "Drafts for other runtimes"


@at_edge()
def export(
    source: Annotated[Path, typer.Argument(metavar="SKIP.json", help="skip.json, or any dialect's file with --model.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"A skip-set dialect ({', '.join(Dialect)}), or a draft that runs ({', '.join(FORMATS)}).",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Model, where the file does not lead to it; for a draft anything that loads.",
            autocompletion=options.complete_model,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Branch, tag or commit of the model on the hub.",
            show_default="the study's",
            rich_help_panel=_PANEL_DRAFT,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="T", help="Task, for dialects that key by it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File of a dialect, folder of a draft.", show_default="standard output"),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="F", help="The target's GGUF file, for --to gguf.", rich_help_panel=_PANEL_DRAFT),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W",
            help=f"Of a GGUF draft: {', '.join(GGUF_WEIGHTS)}.",
            show_default="copy",
            rich_help_panel=_PANEL_DRAFT,
        ),
    ] = None,
    draft_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens a draft, at most.",
            show_default="the search's",
            rich_help_panel=_PANEL_DRAFT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file, or what an earlier export left in the folder.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run the draft in its runtime, which must be installed (transformers is): does it say what our engine "
            "says, and draft as often right?",
            rich_help_panel=_PANEL_DRAFT,
        ),
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a skip set in another project's format, or as a draft that another runtime runs."""
    if to not in (*Dialect, *FORMATS):
        raise UsageError(f"--to {to!r} is no format; expected one of {', '.join((*Dialect, *FORMATS))}.")
    if to in set(Dialect):
        _refuse(f"--to {to} writes a file of skips alone", {"--verify": verify or None, "--gguf": gguf})
        lost: dict[str, object] = {"--weights": weights, "--draft-tokens": draft_tokens, "--revision": revision}
        _refuse(f"--to {to} writes a file of skips alone", lost)
        _export_dialect(source, Dialect(to), model, task, out, force=force, json=json)
        return
    _refuse(f"--to {to} holds one draft for all tasks", {"--task": task})
    if out is None:
        raise UsageError(f"--to {to} makes a folder: name it with --out DIR.")
    from selfspec_tune.export.write import export_draft
    from selfspec_tune.report.export import print_export, print_verification

    request = ExportRequest(source, to, out, model, gguf, weights, draft_tokens, force, revision)
    if verify:
        export_format(to).require_runtime()  # before gigabytes are written
    manifest = export_draft(request)
    found = None
    if not json:
        print_export(output.result_console(), manifest, out)
    if verify:
        from selfspec_tune.export.verify import verify_export

        found = verify_export(out, manifest)
        manifest = manifest.model_copy(update={"verified": found})
        if not json:
            print_verification(output.result_console(), found)
    if json:
        output.print_json(manifest.to_dict())
    if found is not None and found.verdict == "different":
        raise SelfSpecError(f"{out} does not compute what the skip set means. Do not serve it, and report it.")


@at_edge()
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Any dialect's file, or FILE#KEY for one entry.")],
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="The model that it is for, at hand here.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="F", help="The skip.json to write.")] = Path("skip.json"),
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="Branch, tag or commit of a hub id.", show_default="the hub's")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    debug: options.Debug = False,
) -> None:
    """Make a skip.json of another project's skip set, to bench it or to search on from it."""
    from selfspec_tune.export.skip_files import import_skip_set

    config, dialect = import_skip_set(source, model, out, revision=revision, force=force)
    found = f"{config.skip_set()} of {config.model.id}, read as {dialect}"
    output.say(f"{out}: {found}; measure it with `selfspec-tune bench`.")


def _refuse(reason: str, given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{reason}, so {name} means nothing. Leave it out.")


def _export_dialect(
    source: Path,
    dialect: Dialect,
    model: str | None,
    task: str | None,
    out: Path | None,
    *,
    force: bool,
    json: bool,
) -> None:
    if out is None and force:
        raise UsageError("--force replaces a file; name it with --out, or leave --force out.")
    if out is not None and out.is_symlink():
        raise UsageError(f"{out} is a symbolic link, which an export never follows. Give the file itself.")
    if out is not None and out.exists() and not force:
        raise UsageError(f"{out} is there already. Give another --out, or --force to replace it.")
    from selfspec_tune.export import export_dialect
    from selfspec_tune.files import write_json_atomic

    value = export_dialect(source, dialect, task=task, model=model)
    if out is not None and out.exists() and out.samefile(split_key(str(source))[0]):
        raise UsageError(f"{out} is the file that is exported, and would be lost. Give another --out.")
    if out is not None:
        write_json_atomic(out, value)
    if out is None or json:
        output.print_json(value)

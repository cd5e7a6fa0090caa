"""``selfspec-tune export`` and ``import``: skip sets and drafts in other projects' formats."""

from __future__ import annotations

from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.draft.dialects import Dialect, split_key
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.export.formats import FORMATS, export_format
from selfspec_tune.requests import ExportRequest


@command("export")
def export(asked: Asked) -> None:
    """Write a skip set in another project's format, or as a draft that another runtime runs."""
    to = asked["to"]
    if to not in (*Dialect, *FORMATS):
        raise UsageError(f"--to {to!r} is no format; expected one of {', '.join((*Dialect, *FORMATS))}.")
    if to in set(Dialect):
        _refuse(
            asked, f"--to {to} writes a file of skips alone", "verify", "gguf", "weights", "draft_tokens", "revision"
        )
        _export_dialect(Dialect(to), asked)
        return
    _refuse(asked, f"--to {to} holds one draft for all tasks", "task")
    if asked["out"] is None:
        raise UsageError(f"--to {to} makes a folder: name it with --out DIR.")
    _export_draft(asked)


def _export_draft(asked: Asked) -> None:
    from selfspec_tune.export.write import export_draft
    from selfspec_tune.report.export import print_export, print_verification

    options = asked.of(ExportRequest)
    request = ExportRequest(format=options.pop("to"), **options)
    out, json = request.out, asked["json"]
    if asked["verify"]:
        export_format(request.format).require_runtime()  # before gigabytes are written
    manifest = export_draft(request)
    found = None
    if not json:
        print_export(output.result_console(), manifest, out)
    if asked["verify"]:
        from selfspec_tune.export.verify import verify_export

        found = verify_export(out, manifest)
        manifest = manifest.model_copy(update={"verified": found})
        if not json:
            print_verification(output.result_console(), found)
    if json:
        output.print_json(manifest.to_dict())
    if found is not None and found.verdict == "different":
        raise SelfSpecError(f"{out} does not compute what the skip set means. Do not serve it, and report it.")


@command("import")
def import_(asked: Asked) -> None:
    """Make a skip.json of another project's skip set, to bench it or to search on from it."""
    from selfspec_tune.export.skip_files import import_skip_set

    out = asked["out"]
    config, dialect = import_skip_set(
        asked["source"], asked["model"], out, revision=asked["revision"], force=asked["force"]
    )
    found = f"{config.skip_set()} of {config.model.id}, read as {dialect}"
    output.say(f"{out}: {found}; measure it with `selfspec-tune bench`.")


def _refuse(asked: Asked, reason: str, *names: str) -> None:
    for name in asked.given(*names):
        raise UsageError(f"{reason}, so `{name}` means nothing. Leave it out.")


def _export_dialect(dialect: Dialect, asked: Asked) -> None:
    source, out, force = asked["source"], asked["out"], asked["force"]
    if out is None and force:
        raise UsageError("--force replaces a file; name it with --out, or leave --force out.")
    if out is not None and out.is_symlink():
        raise UsageError(f"{out} is a symbolic link, which an export never follows. Give the file itself.")
    if out is not None and out.exists() and not force:
        raise UsageError(f"{out} is there already. Give another --out, or --force to replace it.")
    from selfspec_tune.export import export_dialect
    from selfspec_tune.files import write_json_atomic

    value = export_dialect(source, dialect, task=asked["task"], model=asked["model"])
    if out is not None and out.exists() and out.samefile(split_key(str(source))[0]):
        raise UsageError(f"{out} is the file that is exported, and would be lost. Give another --out.")
    if out is not None:
        write_json_atomic(out, value)
    if out is None or asked["json"]:
        output.print_json(value)

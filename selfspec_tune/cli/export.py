"""``selfspec-tune export`` and ``import``: skip sets and drafts in other projects' formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.draft.dialects import Dialect, split_key
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.requests import DraftFormat, ExportRequest

if TYPE_CHECKING:
    from selfspec_tune.export.verify import Verification

_TARGETS = tuple(one.value for kind in (Dialect, DraftFormat) for one in kind)


@command("export")
def export(asked: Asked) -> None:
    """Write a skip set in another project's format, or as a draft that another runtime runs."""
    to = asked["to"]
    if to not in _TARGETS:
        raise UsageError(f"--to {to!r} is no format; expected one of {', '.join(_TARGETS)}.")
    if to in set(Dialect):
        _refuse(
            asked, f"--to {to} writes a file of skips alone", "verify", "gguf", "weights", "draft_tokens", "revision"
        )
        _export_dialect(Dialect(to), asked)
        return
    _refuse(asked, f"--to {to} holds one draft for all tasks", "task")
    if to != DraftFormat.GGUF:
        _refuse(asked, f"--to {to} is made from the checkpoint", "gguf", "weights")
    else:
        _refuse(asked, f"--to {to} is made from a GGUF file", "revision")
    if asked["out"] is None:
        raise UsageError(f"--to {to} makes a folder: name it with --out DIR.")
    _export_draft(asked)


def _export_draft(asked: Asked) -> None:
    from selfspec_tune.export.manifest import MANIFEST
    from selfspec_tune.export.write import export_draft

    options = asked.of(ExportRequest)
    request = ExportRequest(format=DraftFormat(options.pop("to")), **options)
    out, json = request.out, asked["json"]
    if asked["verify"]:
        from selfspec_tune.export.verify import require_runtime

        require_runtime(request.format)  # before gigabytes are written
    manifest = export_draft(request)
    found = None
    if not json:
        _print(manifest, out)
    if asked["verify"]:
        from selfspec_tune.export.verify import verify_export

        found = verify_export(out, manifest, MANIFEST)
        manifest["verified"] = found.to_dict()
        if not json:
            _print_verification(found)
    if json:
        output.print_json(manifest)
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


def _print_verification(found: Verification) -> None:
    difference = found.logprob_difference
    lines = [f"verified in {found.runtime}: {found.verdict}"]
    if found.tokens:
        lines += [
            f"  the draft alone: {found.equal_tokens} of {found.tokens} tokens are our engine's choice too"
            + ("" if difference is None else f", log-probabilities at most {difference:.1g} apart")
        ]
    own = f"  with the draft: {found.same_texts} of {found.prompts} answers are the target's own"
    if found.rounds and found.same_texts < found.prompts:
        own += "; it rounds otherwise when it verifies several tokens of such weights at once, whatever the draft"
    lines += [own]
    lines += [
        f"  {found.accepted} of {found.drafted} drafted tokens accepted; expected: {found.expected_accepted} of "
        f"{found.expected_drafted}"
    ]
    if found.left_out:
        lines += [f"  {found.left_out} prompts left out: the runtime does not name every token of their answers"]
    for line in lines:
        output.result_console().print(line, markup=False, soft_wrap=True)


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


def _print(manifest: dict[str, Any], out: Path) -> None:
    console = output.result_console()
    layers = manifest["layers"]
    whole = sum(layer["attention"] is not None and layer["mlp"] is not None for layer in layers)
    lines = [f"{out}: {manifest['format']} of {manifest['model']}"]
    if manifest["draft_bytes"]:
        share = manifest["draft_bytes"] / manifest["target_bytes"]
        lines += [
            f"{len(layers)} layers, {whole} of them whole; {manifest['draft_bytes'] / 2**20:.0f} MiB of weights, "
            f"{share:.0%} of the target's: a server holds both"
        ]
    lines += [f"note: {note}" for note in manifest["notes"]]
    for runtime, line in manifest["launch"].items():
        lines += [f"{runtime}:", f"  {line}"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)

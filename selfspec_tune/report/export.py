"""An exported draft for people: what it is, the lines that start it, and what came of verifying it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from selfspec_tune.results import ExportManifest, Verification


def print_export(console: Console, manifest: ExportManifest, folder: Path) -> None:
    """What lies in ``folder``: size, notes, and the line of each runtime."""
    layers = manifest.layers
    whole = sum(layer.attention is not None and layer.mlp is not None for layer in layers)
    lines = [f"{folder}: {manifest.format} of {manifest.model}"]
    if manifest.draft_bytes:
        share = f", {manifest.draft_bytes / manifest.target_bytes:.0%} of the target's" if manifest.target_bytes else ""
        lines += [
            f"{len(layers)} layers, {whole} of them whole; {manifest.draft_bytes / 2**20:.0f} MiB of weights{share}: "
            "a server holds both"
        ]
    lines += [f"note: {note}" for note in manifest.notes]
    for runtime, line in manifest.launch.items():
        lines += [f"{runtime}:", f"  {line}"]
    _print(console, lines)


def print_verification(console: Console, found: Verification) -> None:
    """How a runtime's answers compare with our own engine's."""
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
    _print(console, lines)


def _print(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)

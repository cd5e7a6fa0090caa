"""Verifying an export in the runtime that it is for, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.export.gguf import FILE
from selfspec_tune.export.verification import Runtime, Simulation, Verification, server_loop, shared_loop, verify
from selfspec_tune.files import write_json_atomic
from selfspec_tune.requests import DraftFormat
from selfspec_tune.skip_set import SkipSet

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel


def require_runtime(format_: DraftFormat) -> None:
    """Raises `UsageError`, saying how to install it, where the runtime that verifies the format is not installed."""
    if format_ is DraftFormat.GGUF:
        from selfspec_tune.export.runtimes.llamacpp import library

        library()


def verify_export(folder: Path, manifest: dict[str, Any], manifest_file: str) -> Verification:
    """Run the export in ``folder``; what came out is also kept in its manifest.

    Raises `UsageError` where the runtime is not installed, saying how to install it, and what loading the target or
    the draft raises.
    """
    from selfspec_tune.models import load_model

    target = manifest["gguf"] or manifest["model"]
    revision = None if manifest["gguf"] else manifest.get("revision")
    loaded = load_model(target, dtype="float32", device="cpu", revision=revision)
    skip_set = SkipSet(loaded.num_layers, *(tuple(manifest["skip"][kind]) for kind in ("attention", "mlp")))
    runtime, simulation = _runtime(DraftFormat(manifest["format"]), loaded, target, folder, manifest, skip_set)
    found = verify(runtime, loaded, skip_set, simulation)
    write_json_atomic(folder / manifest_file, {**manifest, "verified": found.to_dict()})
    return found


def _runtime(
    format_: DraftFormat,
    loaded: LoadedModel,
    target: str,
    folder: Path,
    manifest: dict[str, Any],
    skip_set: SkipSet,
) -> tuple[Runtime, Simulation]:
    tokens = manifest["draft_tokens"]
    if format_ is DraftFormat.GGUF:
        from selfspec_tune.export.runtimes.llamacpp import LlamaCppPair

        pair = LlamaCppPair(Path(target), folder / FILE, tokens)
        return pair, server_loop(loaded, skip_set, tokens, first_is_plain=True)
    from selfspec_tune.export.runtimes.hf import AssistedGeneration, CustomGeneration

    if format_ is DraftFormat.TRANSFORMERS_GENERATE:
        carried = manifest["settings"]
        policy = DraftPolicy(PolicyKind.THRESHOLD, carried["max_draft_tokens"], carried["exit_threshold"])
        return CustomGeneration(loaded, folder), shared_loop(
            loaded, Draft(skip_set, policy, vocabulary=carried["vocabulary"])
        )
    assisted = AssistedGeneration(loaded, folder, tokens, has_own_code=format_ is DraftFormat.NAS)
    return assisted, server_loop(loaded, skip_set, tokens, first_is_plain=False)

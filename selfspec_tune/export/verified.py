"""Verifying an export in the runtime that it is for, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.export.gguf import FILE
from selfspec_tune.export.verification import Runtime, Verification, verify
from selfspec_tune.files import write_json_atomic
from selfspec_tune.requests import DraftFormat
from selfspec_tune.skip_set import SkipSet

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel


def verify_export(folder: Path, manifest: dict[str, Any], manifest_file: str) -> Verification:
    """Run the export in ``folder``; what came out is also kept in its manifest.

    Raises `UsageError` where the runtime is not installed, saying how to install it, and what loading the target or
    the draft raises.
    """
    from selfspec_tune.models import load_model

    format_ = DraftFormat(manifest["format"])
    target = manifest["gguf"] if format_ is DraftFormat.GGUF else manifest["model"]
    loaded = load_model(target, dtype="float32", device="cpu")
    skip_set = SkipSet(loaded.num_layers, *(tuple(manifest["skip"][kind]) for kind in ("attention", "mlp")))
    tokens = manifest["draft_tokens"]
    found = verify(_runtime(format_, loaded, target, folder, tokens), loaded, skip_set, tokens)
    write_json_atomic(folder / manifest_file, {**manifest, "verified": found.to_dict()})
    return found


def _runtime(format_: DraftFormat, loaded: LoadedModel, target: str, folder: Path, draft_tokens: int) -> Runtime:
    if format_ is DraftFormat.GGUF:
        from selfspec_tune.export.runtimes.llamacpp import LlamaCppPair

        return LlamaCppPair(Path(target), folder / FILE, draft_tokens)
    from selfspec_tune.export.runtimes.hf import AssistedGeneration, CustomGeneration

    if format_ is DraftFormat.TRANSFORMERS_GENERATE:
        return CustomGeneration(loaded, folder)
    return AssistedGeneration(loaded, folder, draft_tokens)

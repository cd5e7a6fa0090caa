"""Drafts that transformers loads as ordinary models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune.errors import SkipSetError
from selfspec_tune.export.blocks import partial
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.job import Job, Written
from selfspec_tune.export.layout import without_code

if TYPE_CHECKING:
    from torch import Tensor


def write_whole_layers(job: Job, folder: Path, final: Path) -> Written:
    """The model's own architecture with fewer layers.

    Raises `SkipSetError` where a layer would lack its attention or its MLP.
    """
    lacking = partial(job.blocks)
    if lacking or not job.blocks:
        some = ", ".join(map(str, lacking[:3])) or "no layer"
        raise SkipSetError(
            f"hf-draft holds whole layers only; of this skip set would be left: {some} alone. Use --to nas, --to gguf "
            "or --to hf-zero, or skip whole layers (a set of another project's conflayers kind)."
        )
    tensors = ((new, job.checkpoint.read(old)) for new, old in job.layout.renamed(job.blocks))
    size = write_checkpoint(folder, tensors, job.layout.config_of(job.blocks, job.checkpoint.config))
    copy_beside(job, folder)
    return Written(size, assisted_launch(job, final))


def write_zeroed(job: Job, folder: Path, final: Path) -> Written:
    """The model itself, the skipped sub-layers' weights zero: they add nothing, and save nothing.

    Exact in every architecture whose sub-layers are added to the residual stream.
    """
    size = write_checkpoint(folder, _zeroed(job), without_code(job.checkpoint.config))
    copy_beside(job, folder)
    note = "Zeroed sub-layers are computed all the same: this draft is as slow as its target. It is for checks, and for"
    return Written(size, assisted_launch(job, final), (f"{note} runtimes that skip zeros.",))


def _zeroed(job: Job) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name in job.checkpoint.tensors:
        tensor = job.checkpoint.read(name)
        is_skipped = any(job.layout.is_of(name, index) for index in job.skip_set.indices)
        yield name, torch.zeros_like(tensor) if is_skipped else tensor


def copy_beside(job: Job, folder: Path) -> None:
    """The tokenizer's files and what generation reads, as files of our own."""
    for file in job.checkpoint.beside:
        shutil.copyfile(file, folder / file.name)


def assisted_launch(job: Job, final: Path, *, remote_code: bool = False) -> dict[str, str]:
    """How transformers drafts with the folder."""
    trust = ", trust_remote_code=True" if remote_code else ""
    load = f"AutoModelForCausalLM.from_pretrained({str(final)!r}{trust})"
    threshold = job.policy.exit_threshold if job.is_threshold else 0.0
    return {
        "transformers": f"draft = {load}; draft.generation_config.update(num_assistant_tokens={job.draft_tokens}, "
        f"num_assistant_tokens_schedule='constant', assistant_confidence_threshold={threshold:g}); "
        "model.generate(**inputs, assistant_model=draft)"
    }

"""Drafts that are the model itself with zeros, for checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.format import Written
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.export.layout import without_code

if TYPE_CHECKING:
    from torch import Tensor

_NOTE = (
    "Zeroed sub-layers are computed all the same: this draft is as slow as its target. It is for checks, and for "
    "runtimes that skip zeros."
)


class HfZero(AssistedFormat):
    """The model itself, the skipped sub-layers' weights zero: they add nothing, and save nothing.

    Exact in every architecture whose sub-layers are added to the residual stream.
    """

    name = "hf-zero"
    about = "the model with zeros for what is skipped: exact, saves nothing"

    def write(self, job: Job[CheckpointTarget], folder: Path, final: Path) -> Written:
        size = write_checkpoint(folder, _zeroed(job), without_code(job.target.checkpoint.config))
        copy_beside(job, folder)
        settings = {"exit_threshold": job.exit_threshold}
        return Written(size, assisted_launch(job, final), (_NOTE,), settings)


FORMAT = HfZero()


def _zeroed(job: Job[CheckpointTarget]) -> Iterator[tuple[str, Tensor]]:
    import torch

    zeroed = frozenset(job.target.layout.zeroed(job.skip_set))
    for name in job.target.checkpoint.tensors:
        tensor = job.target.checkpoint.read(name)
        yield name, torch.zeros_like(tensor) if name in zeroed else tensor

"""An export format that no module of the package knows of, for `test_formats`."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.errors import SkipSetError
from selfspec_tune.export.checkpoint import FILES, write_checkpoint
from selfspec_tune.export.format import Written
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job


class Toy(AssistedFormat):
    """Whole layers, and a text."""

    name = "toy"
    about = "whole layers, and a text"
    made_from = "a box of bricks"
    options = frozenset()
    files = FILES | {"about/toy.txt"}

    def write(self, job: Job[CheckpointTarget], folder: Path, final: Path) -> Written:
        if len(job.blocks) < 2:
            raise SkipSetError("toy: expected two layers at least.")
        target = job.target
        tensors = ((new, target.checkpoint.read(old)) for new, old in target.layout.renamed(job.blocks))
        size = write_checkpoint(folder, tensors, target.layout.config_of(job.blocks, target.checkpoint.config))
        copy_beside(job, folder)
        (folder / "about").mkdir()
        (folder / "about" / "toy.txt").write_text("a toy\n")
        return Written(size, assisted_launch(job, final), ("Not for children.",), {"exit_threshold": 0.0})


FORMAT = Toy()

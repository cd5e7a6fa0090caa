"""Which task's draft a prompt is sent to, by how near its vector is to those of the tasks.

As in KNN-SSD, which picks a skip set by the similarity of a prompt's hidden states to known ones; here
the nearest task is the one whose mean direction is nearest, which needs no number of neighbours and
holds with a single known prompt a task. Pure functions of vectors, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfspec_tune.statistics import FloatArray


@dataclass(frozen=True, slots=True)
class NearestTask:
    """``centroids`` [tasks, width] of unit length: the mean direction of each task's known prompts."""

    tasks: tuple[str, ...]
    centroids: FloatArray

    @classmethod
    def of(cls, vectors: Sequence[FloatArray], tasks: Sequence[str]) -> NearestTask:
        """From known prompts: their vectors [width] and tasks. Raises ValueError for none, or for unequal numbers."""
        if not vectors or len(vectors) != len(tasks):
            raise ValueError(f"{len(vectors)} vectors for {len(tasks)} tasks; expected as many, and at least one.")
        names = tuple(sorted(set(tasks)))
        known = _unit(np.stack(vectors))
        means = [known[[task == name for task in tasks]].mean(axis=0) for name in names]
        return cls(names, _unit(np.stack(means)))

    def pick(self, vector: FloatArray) -> str:
        """The task whose centroid has the largest cosine to ``vector`` [width]; of equal ones the first by name."""
        return self.tasks[int(np.argmax(self.centroids @ _unit(vector)))]


def _unit(vectors: FloatArray) -> FloatArray:
    """``vectors`` [..., width] at length 1; a zero vector stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
    return scaled

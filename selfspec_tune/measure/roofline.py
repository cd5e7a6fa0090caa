"""What this machine's memory can deliver.

The limit is the best of several read kernels over far more than the last-level cache,
timed in the same rounds as the steps: on a shared machine memory is faster in one minute
than in the next, and only what ran side by side can be divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from selfspec_tune.cpu import cpu_caches, last_level_bytes
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.timing import Step
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.models import LoadedModel

CACHES_AS_LARGE = 4  # how many times the last-level cache a kernel reads
LEAST_BYTES = 256 << 20
FALLBACK_CACHE = 32 << 20  # where the system does not say


def largest_matrix(loaded: LoadedModel) -> tuple[int, int]:
    """Rows and columns of the largest matrix that a step multiplies with."""
    modules: list[nn.Module] = [loaded.model.get_output_embeddings(), *loaded.sublayers.layers]
    shapes = [
        (int(parameter.shape[0]), int(parameter.shape[1]))
        for module in modules
        for parameter in module.parameters()
        if parameter.dim() == 2
    ]
    return max(shapes, key=lambda shape: shape[0] * shape[1])


@dataclass(frozen=True, slots=True)
class ReadKernel:
    """Something that does little but read memory; ``run`` returns the bytes that it moved."""

    name: str
    run: Callable[[], int]

    @property
    def step(self) -> Step:
        """The kernel as something to time."""
        return Step(self.run)


@dataclass(frozen=True, slots=True)
class Limit:
    """The best kernel, what it moves a call, and its seconds, one value a round."""

    name: str
    num_bytes: int
    seconds: Sequence[float]

    @property
    def bytes_per_second(self) -> float:
        """In the median round."""
        return self.num_bytes / median(self.seconds)

    def share(self, num_bytes: float, seconds: Sequence[float]) -> float:
        """Share of the limit that a step reached, compared round by round; the median of the rounds."""
        pairs = zip(seconds, self.seconds, strict=True)
        return median((num_bytes / step) / (self.num_bytes / kernel) for step, kernel in pairs)


def read_kernels(
    device: torch.device, dtype: torch.dtype, matrix: tuple[int, int], runner: Runner | None = None
) -> list[ReadKernel]:
    """Reduction, copy, and the GEMV of the largest shape [rows, columns], with more rows where it is small.

    A runner with a ``read_kernels(buffer)`` of its own, (name, callable returning the bytes read)
    pairs over that buffer, adds those. Raises `SelfSpecError` where the memory does not hold the buffers.
    """
    rows, columns = matrix
    least = max(LEAST_BYTES, CACHES_AS_LARGE * last_level_cache(device))
    rows = max(rows, -(-least // (columns * dtype.itemsize)))
    rows += rows % 2  # so that the buffer holds whole float32 values
    source = _buffer(rows * columns, dtype, device)
    target = torch.empty_like(source)
    # A bit pattern that is an ordinary number both in ``dtype`` and, two at a time, in float32.
    weight, words = source.view(rows, columns), source.view(torch.float32)
    token = torch.ones(1, columns, dtype=dtype, device=device)
    size = source.numel() * source.element_size()

    def reduction() -> int:
        words.sum()
        return size

    def copy() -> int:
        target.copy_(source)
        return 2 * size

    def gemv() -> int:
        F.linear(token, weight)
        return size

    own: Any = getattr(runner, "read_kernels", None)
    offered = [ReadKernel(name, run) for name, run in (own(source) if own is not None else ())]
    return [ReadKernel("reduction", reduction), ReadKernel("copy", copy), ReadKernel("gemv", gemv), *offered]


def find_limit(
    kernels: Sequence[ReadKernel], sizes: Mapping[str, int], seconds: Mapping[str, Sequence[float]]
) -> Limit:
    """The kernel that moved most bytes a second in its median round."""
    limits = [Limit(kernel.name, sizes[kernel.name], seconds[kernel.name]) for kernel in kernels]
    return max(limits, key=lambda limit: limit.bytes_per_second)


def last_level_cache(device: torch.device) -> int:
    """Bytes of the last-level caches that this process's cores have; of a GPU its L2."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return last_level_bytes(cpu_caches()) or FALLBACK_CACHE


def _buffer(numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    needed = 2 * numel * dtype.itemsize
    if device.type == "cpu" and needed > psutil.virtual_memory().available:
        raise SelfSpecError(
            f"Measuring this machine's memory needs {needed / 2**30:.1f} GiB free beside the model, and "
            f"{psutil.virtual_memory().available / 2**30:.1f} GiB are. End other programs, or use a smaller model."
        )
    return torch.full((numel,), 0.5, dtype=dtype, device=device)

"""What this machine's memory can deliver.

The limit is the best of several read kernels over far more than the last-level cache,
timed in the same rounds as the steps, or between the blocks of a bench: on a shared machine
memory is faster in one minute than in the next, and only what ran side by side can be divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from selfspec_tune.cpu import cpu_caches, last_level_bytes
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.timing import Clock, Step
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.models import LoadedModel

CACHES_AS_LARGE = 4  # how many times the last-level cache a kernel reads
LEAST_BYTES = 256 << 20
FALLBACK_CACHE = 32 << 20  # where the system does not say
_AT_ONCE = 16  # calls on a GPU, which reads faster than its kernels start
_CALLS = 2  # of every kernel, of which the fastest counts
_REST = 50  # times as long as measuring took, what was measured last is taken for what holds now


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
    pairs over that buffer, adds those. Each reads all of it, on a GPU several times, as it starts kernels more slowly
    than they read. Raises `SelfSpecError` where the memory does not hold the buffers.
    """
    rows, columns = matrix
    least = max(LEAST_BYTES, CACHES_AS_LARGE * last_level_cache(device))
    rows = max(rows, -(-least // (columns * dtype.itemsize)))
    rows += rows % 2  # so that the buffer holds whole float32 values
    source, target = _buffers(rows * columns, dtype, device)
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
    kernels = {"reduction": reduction, "copy": copy, "gemv": gemv, **dict(own(source) if own is not None else ())}
    calls = _AT_ONCE if device.type == "cuda" else 1
    return [ReadKernel(name, _repeated(run, calls)) for name, run in kernels.items()]


def _repeated(run: Callable[[], int], calls: int) -> Callable[[], int]:
    return lambda: sum(run() for _ in range(calls))


class MemoryMeter:
    """What the memory delivers at a moment: bytes a second by the fastest of a few calls of every kernel.

    Other programs only ever slow a call. So as not to take more than a fiftieth of the time, what was measured last is
    given again until it is fifty times as old as measuring it took. ``synchronize`` waits until the device has done
    what it was asked.
    """

    def __init__(
        self, kernels: Sequence[ReadKernel], synchronize: Callable[[], object], clock: Clock = perf_counter
    ) -> None:
        self._kernels = kernels
        self._synchronize = synchronize
        self._clock = clock
        self._speed = self._took = self._ended = 0.0

    def bytes_per_second(self) -> float:
        """Of now, or of shortly before."""
        if not self._speed:
            for kernel in self._kernels:
                kernel.run()  # memory that nobody has touched is slow to read
        begun = self._clock()
        if not self._speed or begun - self._ended > _REST * self._took:
            self._speed = max(self._timed(kernel) for kernel in self._kernels for _ in range(_CALLS))
            self._ended = self._clock()
            self._took = self._ended - begun
        return self._speed

    def _timed(self, kernel: ReadKernel) -> float:
        self._synchronize()
        begun = self._clock()
        num_bytes = kernel.run()
        self._synchronize()
        return num_bytes / (self._clock() - begun)


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


def _buffers(numel: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What is read, and where it is copied to."""
    needed = 2 * numel * dtype.itemsize
    if device.type == "cpu" and needed > psutil.virtual_memory().available:
        raise SelfSpecError(
            f"Measuring this machine's memory needs {needed / 2**30:.1f} GiB free beside the model, and "
            f"{psutil.virtual_memory().available / 2**30:.1f} GiB are. End other programs, or use a smaller model."
        )
    try:
        source = torch.full((numel,), 0.5, dtype=dtype, device=device)
        return source, torch.empty_like(source)
    except torch.OutOfMemoryError as error:
        raise SelfSpecError(
            f"Measuring the memory of {device} needs {needed / 2**30:.1f} GiB free beside the model. End other "
            "programs that use it, or use a smaller model."
        ) from error

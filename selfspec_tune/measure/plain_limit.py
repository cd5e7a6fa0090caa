"""The denominator that benches have in common: what the memory allows plain bfloat16 decoding of a model.

It is the same model's whatever it is held in, and by the memory as fast as it is between the blocks of this very
bench. So cheaper plain steps can neither flatter a share of it nor spoil it, as they do a speedup.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from statistics import harmonic_mean

import torch

from selfspec_tune.engine.runner import Runner
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.measure.roofline import MemoryMeter, largest_matrix, last_level_cache, read_kernels
from selfspec_tune.measure.traffic import Traffic, traffic_of
from selfspec_tune.models import LoadedModel
from selfspec_tune.results import PairedRun

_EXPERTS = "Without a plan of the model nothing tells how many of its experts a token reads."
_CACHED = "The model is no larger than this machine's caches, so the memory does not limit it."


class PlainLimit:
    """Of one model; read kernels are timed beside what is measured.

    ``notice`` is told where nothing can be known: of a model that the caches hold, of a mixture without a plan, and
    where the memory has no room for what the kernels read.
    """

    def __init__(self, loaded: LoadedModel, runner: Runner, notice: Callable[[str], None]) -> None:
        self._loaded = loaded
        self._runner = runner
        self._notice = notice

    def beside(self, measure: Callable[[], list[PairedRun]]) -> list[PairedRun]:
        """The pairs of a block, with what the memory delivered before and after it, and what plain decoding reads."""
        meter = self._meter
        if meter is None:
            return measure()
        before = meter.bytes_per_second()
        runs = measure()
        speed = harmonic_mean([before, meter.bytes_per_second()])
        return [
            run.model_copy(update={"plain_bytes": self._bytes(run), "memory_bytes_per_second": speed}) for run in runs
        ]

    def _bytes(self, run: PairedRun) -> float:
        return self._traffic.full_step(run.prompt_tokens + run.baseline.num_tokens // 2)

    @cached_property
    def _traffic(self) -> Traffic:
        return traffic_of(self._loaded, torch.bfloat16)

    @cached_property
    def _meter(self) -> MemoryMeter | None:
        """None where nothing can be known."""
        loaded = self._loaded
        try:
            self._check()
            kernels = read_kernels(loaded.device, loaded.dtype, largest_matrix(loaded), self._runner)
        except SelfSpecError as error:
            self._notice(f"no share of the memory's limit is told: {error}")
            return None
        return MemoryMeter(kernels, self._runner.synchronize)

    def _check(self) -> None:
        """Raise `SelfSpecError` where a limit would mean nothing."""
        if self._traffic.counts_all:
            raise SelfSpecError(_EXPERTS)
        if self._traffic.full_step(0) <= last_level_cache(self._loaded.device):
            raise SelfSpecError(_CACHED)

"""Which runner serves a model: the fastest one that proves equal to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from time import perf_counter
from typing import Any

import torch

from selfspec_tune.engine.far_probe import FarProbe
from selfspec_tune.engine.near_probe import NUM_PROMPT_TOKENS, NearProbe
from selfspec_tune.engine.runner import Runner, Want, check_first_pass
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner, native_unsupported_reason
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.engine.timing import Clock, Step, TimingRounds, time_steps
from selfspec_tune.engine.torch_settings import limit_threads, use_exact_float32
from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.bound import unbound_reason

# Largest logit difference allowed, as a share of the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
_FAR = 1.5  # times as much far into the context, where what is cached is no text: rounding moves more
_VERIFIED = 4  # drafted tokens of the verification that runners are timed by
_ROUNDS = TimingRounds(least=3, most=9, seconds=0.3)
_CLEARLY = 1.05  # times as fast


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A runner faster than the reference: whether it can serve a model, and what its lack means."""

    name: str
    unsupported_reason: Callable[[LoadedModel], str | None]
    open: Callable[[LoadedModel], FastRunner]
    without: str  # what a model runs without where this runner cannot serve it


_FAST = _Candidate(
    "fast",
    lambda loaded: unserved_reason(loaded.model, FastRunner.SERVES),
    lambda loaded: FastRunner(loaded),
    "our own loop",
)
_NATIVE = _Candidate(
    "native",
    lambda loaded: (
        unserved_reason(loaded.model, NativeRunner.SERVES, "the native kernels") or native_unsupported_reason(loaded)
    ),
    lambda loaded: NativeRunner(loaded),
    "our native kernels, so decoding is slower",
)
_GRAPHS = _Candidate(
    "graphs",
    lambda loaded: unserved_reason(loaded.model, GraphedRunner.SERVES, "the captured graphs"),
    lambda loaded: GraphedRunner(loaded),
    "CUDA graphs, so each small kernel is launched by itself",
)
_CANDIDATES = {candidate.name: candidate for candidate in (_NATIVE, _GRAPHS, _FAST)}
RUNNERS = ("auto", *_CANDIDATES, "reference")


def choose_runner(
    loaded: LoadedModel,
    choice: str = "auto",
    notice: Callable[[str], None] = print,
    *,
    begun_with: str | None = None,
    clock: Clock = perf_counter,
) -> Runner:
    """The runner named by ``choice``: one of `RUNNERS`.

    ``auto`` takes the fastest of those whose logits equal the reference's on a probe input: of
    captured graphs (on a GPU), the native kernels (on a CPU) and the fast runner. The first two are
    taken unless the fast runner is clearly faster. Where none serves it takes the reference; a
    ``notice`` says why it is not the first. What is resumed was ``begun_with`` a runner, which
    ``auto`` then takes where it serves. A runner that was asked for by name raises
    `UnsupportedModelError` where it does not serve, a model whose logits are no numbers `NonFiniteError`, and one that
    transformers loads and cannot run `FileFormatError`.
    ``graphs`` on a CPU is a dry mode that replays by calling: for checks, not for speed.
    """
    if choice not in RUNNERS:
        raise UsageError(f"`runner` {choice}: expected {', '.join(RUNNERS[:-1])} or {RUNNERS[-1]}.")
    use_exact_float32()
    limit_threads(notice)
    reference = ReferenceRunner(loaded)
    _check_own_pass(loaded, reference)
    if choice == "reference" or (choice == "auto" and begun_with == "reference"):
        return reference
    if choice == "auto":
        return _fastest(loaded, reference, begun_with, notice, clock)
    runner, reason = _Judge(loaded, reference, notice, clock).open(_CANDIDATES[choice])
    if runner is None:
        raise UnsupportedModelError(
            f"`runner` {choice} cannot serve {loaded.name}: {reason}. Use `runner` auto or reference."
        )
    if choice == _GRAPHS.name and loaded.device.type != "cuda":
        notice(f"`runner` graphs runs dry on {loaded.device}: nothing is captured, so nothing is faster.")
    return runner


def _check_own_pass(loaded: LoadedModel, reference: ReferenceRunner) -> None:
    embedding: Any = loaded.model.get_input_embeddings()
    try:
        check_first_pass(reference, int(embedding.weight.shape[0]))
    except (SelfSpecError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a configuration may be loaded, and still state what no pass can do
        planned = unbound_reason(loaded.model)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FileFormatError(
            f"The model {loaded.name!r} can be loaded, but its own forward pass in transformers fails: “{said}”. "
            + (f"Of its configuration: {planned}. " if planned else "")
            + "Mend its config.json, or get the checkpoint again."
        ) from error


def _fastest(
    loaded: LoadedModel, reference: ReferenceRunner, begun_with: str | None, notice: Callable[[str], None], clock: Clock
) -> Runner:
    """What ``auto`` takes."""
    judge = _Judge(loaded, reference, notice, clock)
    taken: FastRunner | None = None
    reason: str | None = None
    candidates = [_GRAPHS if loaded.device.type == "cuda" else _NATIVE, _FAST]
    for candidate in sorted(candidates, key=lambda candidate: candidate.name != begun_with):
        runner, reason = judge.open(candidate, taken)
        if runner is not None:
            taken = runner
            if candidate.name == begun_with:
                break
        elif candidate is not _FAST and _FAST.unsupported_reason(loaded) is None:
            notice(f"{loaded.name} runs without {candidate.without}: {reason}.")
    if taken is not None:
        return taken
    notice(
        f"{loaded.name} runs on the reference runner: {reason}. There a skipped sub-layer still costs its time, so no "
        "skip set can come out faster; use it to check outputs, not to tune."
    )
    return reference


class _Judge:
    """Opens candidates for one model and sees what they are. The reference walks once, however many there are."""

    def __init__(
        self, loaded: LoadedModel, reference: ReferenceRunner, notice: Callable[[str], None], clock: Clock
    ) -> None:
        self._loaded = loaded
        self._notice = notice
        self._clock = clock
        self._near, self._far = NearProbe(loaded, reference), FarProbe(loaded, reference)

    def open(self, candidate: _Candidate, rival: FastRunner | None = None) -> tuple[FastRunner | None, str | None]:
        """The candidate where it equals the reference, or why it does not serve.

        A ``rival`` that serves is kept, so that the choice is stable, unless the candidate is clearly faster. That is
        seen first: a slower one need not prove anything.
        """
        loaded = self._loaded
        try:
            reason = candidate.unsupported_reason(loaded)
            if reason is not None:
                return None, reason
            runner = candidate.open(loaded)
            if isinstance(runner, NativeRunner):
                runner.notice = self._notice
            seconds = {} if rival is None else _time((rival, runner), loaded.context_length, self._clock)
            if rival is not None and seconds[rival.name] <= _CLEARLY * seconds[runner.name]:
                return None, f"it is not clearly faster than the {rival.name} runner"
            if candidate is _GRAPHS:
                self._near.difference(runner)  # the first walk captures; the next replays
            reason = self._unequal_reason(runner) or self._unequal_afar_reason(runner)
        except UsageError:
            raise
        except Exception as error:  # another one may serve, whatever is wrong with this one
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            failed = "its passes cannot be captured" if candidate is _GRAPHS else f"it failed, {type(error).__name__}"
            return None, f"{failed} ({first_line})"
        if reason is not None:
            return None, reason
        if rival is not None:
            self._notice(
                f"{loaded.name} runs on the {runner.name} runner: there a decode step and a verification of "
                f"{_VERIFIED} tokens take {1e3 * seconds[runner.name]:.3g} ms, and "
                f"{seconds[rival.name] / seconds[runner.name]:.2f} times as long on the {rival.name} runner."
            )
        return runner, None

    def _unequal_reason(self, runner: FastRunner) -> str | None:
        difference = self._near.difference(runner)
        if difference <= _TOLERANCE[self._loaded.dtype]:
            return None
        if not isfinite(difference):
            return "its logits differ from the reference: they are no finite numbers"
        return f"its logits differ from the reference by {difference:.2g} of the largest logit"

    def _unequal_afar_reason(self, runner: FastRunner) -> str | None:
        """The same near the context's end; the long cache is then let go."""
        position = self._far.position
        if position is None:
            return None
        try:
            difference = self._far.difference(runner)
        except UsageError:  # no memory for so long a cache: then no run comes so far either
            return None
        finally:
            runner.release()
        if difference <= _FAR * _TOLERANCE[self._loaded.dtype]:
            return None
        return f"its logits differ from the reference by {difference:.2g} of the largest logit at position {position}"


def _time(runners: Sequence[FastRunner], context_length: int, clock: Clock) -> dict[str, float]:
    """Seconds of a decode step and a verification on each, interleaved: the median of a few rounds."""
    steps = {runner.name: Step(_decode_and_verify(runner, context_length)) for runner in runners}
    timed = time_steps(runners[0], steps, _ROUNDS, clock)
    return {name: median(seconds) for name, seconds in timed.items()}


def _decode_and_verify(runner: FastRunner, context_length: int) -> Callable[[], None]:
    """After as many positions as the probe's prompt has; what they hold has no influence on the time."""
    needed = _VERIFIED + 2
    length = min(NUM_PROMPT_TOKENS, context_length - needed)
    runner.reserve(length + needed)
    runner.resume((), length)

    def run() -> None:
        runner.forward([0], want=Want.TOKENS)
        runner.forward([0] * (_VERIFIED + 1), want=Want.TOKENS)
        runner.rewind(length)
        runner.synchronize()

    return run

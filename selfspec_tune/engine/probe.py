"""Which runner serves a model: the fastest one that proves equal to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.far_probe import FarProbe
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.finite import check_first_pass
from selfspec_tune.engine.graphs import GraphedRunner
from selfspec_tune.engine.greedy import greedy_steps
from selfspec_tune.engine.native import NativeRunner, native_unsupported_reason
from selfspec_tune.engine.numerics import use_exact_float32
from selfspec_tune.engine.reference import ReferenceRunner
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.threads import limit_threads
from selfspec_tune.engine.timing import Clock, Rounds, Step, time_steps
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.structure import unsupported_reason
from selfspec_tune.skip_set import SkipSet

# Largest logit difference allowed, as a share of the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
_FAR = 1.5  # times as much far into the context, where what is cached is no text: rounding moves more
_NUM_PROBE_TOKENS = 40  # prompts beyond 33 tokens take another attention path
_NUM_PROBE_STEPS = 8
_VERIFIED = 4  # drafted tokens of the verification that runners are timed by
_ROUNDS = Rounds(least=3, most=9, seconds=0.3)
_CLEARLY = 1.05  # times as fast


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A runner faster than the reference: whether it can serve a model, and what its lack means."""

    name: str
    unsupported_reason: Callable[[LoadedModel], str | None]
    open: Callable[[LoadedModel], FastRunner]
    without: str  # what a model runs without where this runner cannot serve it


_FAST = _Candidate("fast", unsupported_reason, lambda loaded: FastRunner(loaded), "our own loop")
_NATIVE = _Candidate(
    "native",
    lambda loaded: unsupported_reason(loaded) or native_unsupported_reason(loaded),
    lambda loaded: NativeRunner(loaded),
    "our native kernels, so decoding is slower",
)
_GRAPHS = _Candidate(
    "graphs",
    unsupported_reason,
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
    `UnsupportedModelError` where it does not serve, and a model whose logits are no numbers `NonFiniteError`.
    ``graphs`` on a CPU is a dry mode that replays by calling: for checks, not for speed.
    """
    if choice not in RUNNERS:
        raise UsageError(f"--runner {choice}: expected {', '.join(RUNNERS[:-1])} or {RUNNERS[-1]}.")
    use_exact_float32()
    limit_threads(notice)
    reference = ReferenceRunner(loaded)
    embedding: Any = loaded.model.get_input_embeddings()
    check_first_pass(reference, int(embedding.weight.shape[0]))
    if choice == "reference" or (choice == "auto" and begun_with == "reference"):
        return reference
    if choice == "auto":
        return _fastest(loaded, reference, begun_with, notice, clock)
    runner, reason = _open(_CANDIDATES[choice], loaded, reference, FarProbe(loaded, reference), notice)
    if runner is None:
        raise UnsupportedModelError(
            f"--runner {choice} cannot serve {loaded.name}: {reason}. Use --runner auto or reference."
        )
    if choice == _GRAPHS.name and loaded.device.type != "cuda":
        notice(f"--runner graphs runs dry on {loaded.device}: nothing is captured, so nothing is faster.")
    return runner


def _fastest(
    loaded: LoadedModel, reference: ReferenceRunner, begun_with: str | None, notice: Callable[[str], None], clock: Clock
) -> Runner:
    """What ``auto`` takes."""
    serving: list[Runner] = []
    reason: str | None = None
    far = FarProbe(loaded, reference)
    candidates = [_GRAPHS if loaded.device.type == "cuda" else _NATIVE, _FAST]
    for candidate in sorted(candidates, key=lambda candidate: candidate.name != begun_with):
        runner, reason = _open(candidate, loaded, reference, far, notice)
        if runner is not None:
            if candidate.name == begun_with:
                return runner
            serving.append(runner)
        elif candidate is not _FAST and unsupported_reason(loaded) is None:
            notice(f"{loaded.name} runs without {candidate.without}: {reason}.")
    if serving:
        return _faster(serving, loaded, notice, clock)
    notice(
        f"{loaded.name} runs on the reference runner: {reason}. There a skipped sub-layer still costs its time, so no "
        "skip set can come out faster; use it to check outputs, not to tune."
    )
    return reference


def _faster(serving: Sequence[Runner], loaded: LoadedModel, notice: Callable[[str], None], clock: Clock) -> Runner:
    """The fastest of ``serving``: the first, unless another is clearly faster, so that the choice is stable."""
    first = serving[0]
    if len(serving) == 1:
        return first
    seconds = _time(serving, clock)
    fastest = min(serving, key=lambda runner: seconds[runner.name])
    if seconds[first.name] <= _CLEARLY * seconds[fastest.name]:
        return first
    ratio = seconds[first.name] / seconds[fastest.name]
    notice(
        f"{loaded.name} runs on the {fastest.name} runner: there a decode step and a verification of {_VERIFIED} "
        f"tokens take {1e3 * seconds[fastest.name]:.3g} ms, and {ratio:.2f} times as long on the {first.name} runner."
    )
    return fastest


def _time(runners: Sequence[Runner], clock: Clock) -> dict[str, float]:
    """Seconds of a decode step and a verification on each, interleaved: the median of a few rounds."""
    steps = {runner.name: Step(_decode_and_verify(runner)) for runner in runners}
    timed = time_steps(runners[0], steps, _ROUNDS, clock)
    return {name: median(seconds) for name, seconds in timed.items()}


def _decode_and_verify(runner: Runner) -> Callable[[], None]:
    """About where the probe ended, with room for both."""
    greedy, length = greedy_steps(runner), min(runner.length, runner.capacity - _VERIFIED - 2)
    runner.rewind(length)

    def run() -> None:
        greedy.decode_greedy(0)
        greedy.verify_greedy([0] * (_VERIFIED + 1))
        runner.rewind(length)
        runner.synchronize()

    return run


def _open(
    candidate: _Candidate,
    loaded: LoadedModel,
    reference: ReferenceRunner,
    far: FarProbe,
    notice: Callable[[str], None],
) -> tuple[Runner | None, str | None]:
    """The candidate where it equals the reference, or why it does not serve."""
    try:
        reason = candidate.unsupported_reason(loaded)
        if reason is not None:
            return None, reason
        runner = candidate.open(loaded)
        if isinstance(runner, NativeRunner):
            runner.notice = notice
        if candidate is _GRAPHS:
            probe_difference(runner, reference)  # the first walk captures; the next replays
        reason = _unequal_reason(runner, reference, loaded.dtype)
        reason = reason or _unequal_afar_reason(candidate, loaded, far)
    except UsageError:
        raise
    except Exception as error:  # another one may serve, whatever is wrong with this one
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        failed = "its passes cannot be captured" if candidate is _GRAPHS else f"it failed, {type(error).__name__}"
        return None, f"{failed} ({first_line})"
    return (runner, None) if reason is None else (None, reason)


def _unequal_reason(runner: Runner, reference: Runner, dtype: torch.dtype) -> str | None:
    difference = probe_difference(runner, reference)
    if difference <= _TOLERANCE[dtype]:
        return None
    if not isfinite(difference):
        return "its logits differ from the reference: they are no finite numbers"
    return f"its logits differ from the reference by {difference:.2g} of the largest logit"


def _unequal_afar_reason(candidate: _Candidate, loaded: LoadedModel, far: FarProbe) -> str | None:
    """The same near the context's end, by a runner of its own, whose long cache is then let go."""
    if far.position is None:
        return None
    try:
        difference = far.difference(candidate.open(loaded))
    except UsageError:  # no memory for so long a cache: then no run comes so far either
        return None
    if difference <= _FAR * _TOLERANCE[loaded.dtype]:
        return None
    return f"its logits differ from the reference by {difference:.2g} of the largest logit at position {far.position}"


def probe_difference(runner: Runner, reference: Runner) -> float:
    """Largest logit difference over prefill, decode, draft, verify and rewind, as a share of the largest logit."""
    num_tokens = min(_NUM_PROBE_TOKENS, reference.capacity - _NUM_PROBE_STEPS)
    ours, theirs = _probe(runner, num_tokens), _probe(reference, num_tokens)
    differences = [(a.float() - b.float()).abs().max() for a, b in zip(ours, theirs, strict=True)]
    largest = torch.stack([logits.float().abs().max() for logits in theirs]).max().clamp(min=1e-6)
    share = float(torch.stack(differences).max() / largest)  # keeps a NaN, unlike Python's max
    return share if isfinite(share) else inf


def _probe(runner: Runner, num_tokens: int) -> list[Tensor]:
    """Logits of one walk through the interface, on arbitrary but fixed tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(runner.vocabulary_size, (max(num_tokens, 8),), generator=generator).tolist()
    runner.reserve(len(tokens) + _NUM_PROBE_STEPS)
    middle = runner.num_layers // 2
    runner.set_draft(Draft(SkipSet(runner.num_layers, (middle,), (max(middle - 1, 0),))))
    logits = [runner.prefill(tokens), runner.decode(tokens[0])]
    verified = runner.length
    logits += [runner.draft_step(tokens[1]), runner.draft_step(tokens[2])]
    runner.rewind(verified)
    logits.append(runner.verify(tokens[3:7]))
    runner.rewind(verified + 2)
    logits.append(runner.decode(tokens[5]))
    return logits

"""Which runner serves a model: the fastest one that proves equal to the reference."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.fast import FastRunner, unsupported_reason
from selfspec_tune.engine.graphs import GraphedRunner
from selfspec_tune.engine.numerics import use_exact_float32
from selfspec_tune.engine.reference import ReferenceRunner
from selfspec_tune.engine.runner import Runner
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.skip_set import SkipSet

# Largest logit difference allowed, as a share of the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
_NUM_PROBE_TOKENS = 40  # prompts beyond 33 tokens take another attention path
_NUM_PROBE_STEPS = 8


def choose_runner(loaded: LoadedModel, choice: str = "auto", notice: Callable[[str], None] = print) -> Runner:
    """The runner named by ``choice``: auto, graphs, fast or reference.

    ``auto`` takes captured graphs on a GPU, the fast runner elsewhere, in each case where
    its logits equal the reference's on a probe input, else the next in that order with a
    ``notice``. A runner that was asked for by name raises `UnsupportedModelError` then.
    ``graphs`` on a CPU is a dry mode that replays by calling: for checks, not for speed.
    """
    if choice not in ("auto", "graphs", "fast", "reference"):
        raise UsageError(f"--runner {choice}: expected auto, graphs, fast or reference.")
    use_exact_float32()
    reference = ReferenceRunner(loaded)
    if choice == "reference":
        return reference
    reason = unsupported_reason(loaded)
    on_gpu = loaded.device.type == "cuda"
    if reason is None and (choice == "graphs" or (choice == "auto" and on_gpu)):
        runner, reason = _graphs_where_equal(loaded, reference)
        if runner is not None:
            if not on_gpu:
                notice(f"--runner graphs runs dry on {loaded.device}: nothing is captured, so nothing is faster.")
            return runner
        if choice == "auto":
            notice(f"{loaded.name} runs without CUDA graphs, so each small kernel is launched by itself: {reason}.")
            reason = None
    if reason is None:
        fast = FastRunner(loaded)
        reason = _unequal_reason(fast, reference, loaded.dtype)
        if reason is None:
            return fast
    if choice != "auto":
        raise UnsupportedModelError(
            f"--runner {choice} cannot serve {loaded.name}: {reason}. Use --runner auto or reference."
        )
    notice(
        f"{loaded.name} runs on the reference runner: {reason}. There a skipped sub-layer still costs its time, so no "
        "skip set can come out faster; use it to check outputs, not to tune."
    )
    return reference


def _graphs_where_equal(loaded: LoadedModel, reference: Runner) -> tuple[Runner | None, str | None]:
    """A runner of graphs that equals the reference, or why there is none."""
    try:
        runner = GraphedRunner(loaded)
        probe_difference(runner, reference)  # the first walk captures; the second replays
        reason = _unequal_reason(runner, reference, loaded.dtype)
    except RuntimeError as error:  # what CUDA raises where an operation cannot be captured
        return None, f"its passes cannot be captured ({str(error).splitlines()[0]})"
    return (runner, None) if reason is None else (None, reason)


def _unequal_reason(runner: Runner, reference: Runner, dtype: torch.dtype) -> str | None:
    difference = probe_difference(runner, reference)
    if difference <= _TOLERANCE[dtype]:
        return None
    return f"its logits differ from the reference by {difference:.2g} of the largest logit"


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

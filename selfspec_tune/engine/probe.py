"""Which runner serves a model: the fast one where it proves equal to the reference."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.fast import FastRunner, unsupported_reason
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
    """The runner named by ``choice`` (auto, fast or reference).

    ``auto`` takes the fast runner where its logits equal the reference's on a probe
    input, else the reference with a ``notice``; ``fast`` raises `UnsupportedModelError` then.
    """
    if choice not in ("auto", "fast", "reference"):
        raise UsageError(f"--runner {choice}: expected auto, fast or reference.")
    reference = ReferenceRunner(loaded)
    if choice == "reference":
        return reference
    reason = unsupported_reason(loaded)
    if reason is None:
        fast = FastRunner(loaded)
        difference = probe_difference(fast, reference)
        if difference <= _TOLERANCE[loaded.dtype]:
            return fast
        reason = f"its logits differ from the reference by {difference:.2g} of the largest logit"
    if choice == "fast":
        raise UnsupportedModelError(
            f"--runner fast cannot serve {loaded.name}: {reason}. Use --runner auto or reference."
        )
    notice(
        f"{loaded.name} runs on the reference runner: {reason}. There a skipped sub-layer still costs its time, so no "
        "skip set can come out faster; use it to check outputs, not to tune."
    )
    return reference


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

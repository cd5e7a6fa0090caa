"""Whether an arm gave the baseline's tokens, and whether a difference is a numerical tie.

In bfloat16 and float16 a verification over several tokens sums in another order than
single steps do, so two tokens whose logits nearly tie may swap. The *numeric floor* is
the largest logit difference that this alone makes; a first difference whose logit gap
lies within it is a tie, anything else is a mismatch. Output of another implementation of
the model differs by more: it is held against the largest difference between the two on the
baseline's own tokens. Both are measured on what is being judged, so neither counts beyond a few
rounding steps of the largest logit: an engine that computes something else has a large floor too.
In a mixture of experts rounding decides between experts that score alike, and that moves a few positions by far
more. There two implementations must agree that well at most positions, and a drafted answer of ours must come out again
where the whole model alone reads it in the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Round
from selfspec_tune.engine import Runner, autoregressive
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.penalty import NO_PENALTY, penalise_rows, penalised
from selfspec_tune.measure.workload import WorkItem, Workload, shortened
from selfspec_tune.models.loaded import keep_logits
from selfspec_tune.results import Lossless

FLOAT32_FLOOR = 1e-4
# Steps between neighbouring numbers at the largest logit that another order of the same sums may make.
# In float32 the sums' own errors, many to one layer, outgrow the rounding of what they give.
_ROUNDING_STEPS = {torch.bfloat16: 4, torch.float16: 8, torch.float32: 64}
_TYPICAL = 2  # times the bound, between two implementations of a mixture: what is allowed where a runner is chosen
_CHUNKS = (3, 5, 9)
_FLOOR_ITEMS = 4
_FLOOR_TOKENS = 24


@dataclass(frozen=True, slots=True)
class LosslessVerdict:
    """``first_difference``: index of the first new token that differs; ``logit_gap``: the target's gap there."""

    status: Lossless
    first_difference: int | None = None
    logit_gap: float | None = None


class LosslessCheck:
    """Compares token sequences; looks at logits only where they differ.

    ``dtype``: what the model computes in, whose rounding steps bound every floor; ``is_mixture``: whether rounding
    chooses experts. ``penalty``: for repetitions, under which ``runner`` gives its logits.
    """

    def __init__(
        self,
        runner: Runner,
        floor: float,
        *,
        dtype: torch.dtype = torch.float32,
        is_mixture: bool = False,
        sampled: bool = False,
        penalty: float = NO_PENALTY,
    ) -> None:
        self._penalty = penalty
        self._is_mixture = is_mixture
        self._runner = runner
        self._sampled = sampled
        self._dtype = dtype
        self.floor = floor

    def __call__(
        self,
        item: WorkItem,
        baseline: Sequence[int],
        candidate: Sequence[int],
        model: Any = None,
        rounds: Sequence[Round] = (),
    ) -> LosslessVerdict:
        """``model``: whose own forward pass made the candidate's tokens; None: the runner did, in ``rounds``."""
        if self._sampled:
            return LosslessVerdict("sampled")
        pairs = zip(baseline, candidate, strict=False)
        differing = (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        shorter = min(len(baseline), len(candidate))
        first = next(differing, shorter)
        if first == max(len(baseline), len(candidate)):
            return LosslessVerdict("identical")
        if first == shorter:  # one goes on where the other ended
            return LosslessVerdict("mismatch", first)
        gap, bound = self._gap([*item.tokens, *baseline[:first]], baseline[first], candidate[first])
        is_tie = gap <= min(self.floor, bound)
        if not is_tie and model is not None and (gap <= bound or self._is_mixture):
            differences = implementation_differences(self._runner, model, item, baseline, self._penalty)
            if gap <= bound:
                is_tie = gap <= float(differences[: first + 1].max())
            else:  # a row may move up and another down
                is_typical = float(differences.median()) <= _TYPICAL * bound
                is_tie = is_typical and gap <= 2 * float(differences.max())
        elif not is_tie and model is None and self._is_mixture and self.floor > 0:
            differences = verification_differences(self._runner, item, baseline)
            is_tie = (
                float(differences.median()) <= bound and self._replayed_gap(item, candidate, rounds, first) <= bound
            )
        return LosslessVerdict("numerical_tie" if is_tie else "mismatch", first, gap)

    def _replayed_gap(self, item: WorkItem, candidate: Sequence[int], rounds: Sequence[Round], place: int) -> float:
        """How far the candidate's token at ``place`` lies below the highest logit, nothing being drafted.

        The whole model reads the candidate in the pieces that it verified; what it rejected is unknown and made up.
        """
        runner, begun = self._runner, 1
        runner.reserve(len(item.tokens) + item.limits.max_new_tokens)
        prefill(runner, item.tokens)
        for round_ in rounds:
            length, last = runner.length, candidate[begun - 1]
            accepted = candidate[begun : begun + round_.num_accepted]
            logits = runner.forward([last, *accepted, *[last] * (round_.num_drafted - len(accepted))]).logits
            if begun <= place < begun + round_.num_tokens:
                row = logits[place - begun].float()
                return float(row.max() - row[candidate[place]])
            runner.rewind(length + round_.num_tokens)
            begun += round_.num_tokens
        return inf

    def _gap(self, context: list[int], first: int, second: int) -> tuple[float, float]:
        """How far below the highest logit the lower of the two tokens lies after ``context``; the most that ties."""
        logits = prefill(self._runner, context).float()
        gap = float(logits.max() - torch.minimum(logits[first], logits[second]))
        return gap, rounding_bound(self._dtype, float(logits.abs().max()))


def rounding_bound(dtype: torch.dtype, largest: float) -> float:
    """The most by which rounding alone moves a logit, where the ``largest`` has this magnitude."""
    return max(FLOAT32_FLOOR, _ROUNDING_STEPS[dtype] * torch.finfo(dtype).eps * largest)


def numeric_floor(runner: Runner, item: WorkItem, answer: Sequence[int]) -> float:
    """Largest of `verification_differences`.

    For bfloat16 and float16; in float32 a fixed `FLOAT32_FLOOR` stands instead.
    """
    # A NaN stays one, unlike with Python's max: then no gap lies within the floor.
    return float(verification_differences(runner, item, answer).max())


def verification_differences(runner: Runner, item: WorkItem, answer: Sequence[int]) -> Tensor:
    """Largest |logit difference| between single steps and verification of 3, 5 and 9 tokens, at each position.

    Measured on the baseline's own ``answer``, nothing skipped, over the whole vocabulary: [3 * tokens].
    """
    runner.reserve(len(item.tokens) + len(answer))
    prefill(runner, item.tokens)
    prefix = runner.length
    steps = torch.cat([runner.forward([token]).logits.float() for token in answer])
    differences = []
    for chunk in _CHUNKS:
        runner.rewind(prefix)
        for start in range(0, len(answer), chunk):
            verified = runner.forward(answer[start : start + chunk]).logits.float()
            differences.append((verified - steps[start : start + chunk]).abs().amax(-1))
    return torch.cat(differences)


@torch.inference_mode()
def implementation_differences(
    runner: Runner, model: Any, item: WorkItem, answer: Sequence[int], penalty: float = NO_PENALTY
) -> Tensor:
    """Largest |logit difference| between the runner and ``model``'s own forward pass, at each position of ``answer``.

    Over the whole vocabulary: [tokens + 1]. ``penalty``: for repetitions, the runner's.
    """
    runner.reserve(len(item.tokens) + len(answer))
    steps = [prefill(runner, item.tokens).float(), *(runner.forward([token]).logits[0].float() for token in answer)]
    text = [*item.tokens, *answer]
    context = torch.tensor([text], device=steps[0].device)
    kept = keep_logits(model, len(steps))
    theirs = model(context, use_cache=False, **kept).logits[0, -len(steps) :].float()
    theirs = penalise_rows(theirs, text, penalty)
    return (torch.stack(steps) - theirs).abs().amax(-1)


def make_check(workload: Workload, items: Sequence[WorkItem], floor: float | None = None) -> LosslessCheck:
    """A lossless check whose numeric floor is ``floor``, else the largest found on the answers to a few items."""
    sampler, dtype = workload.sampler, workload.loaded.dtype
    runner = penalised(workload.runner, sampler.repetition_penalty)
    if dtype == torch.float32 or not sampler.greedy:
        return LosslessCheck(runner, FLOAT32_FLOOR, sampled=not sampler.greedy, penalty=sampler.repetition_penalty)
    is_mixture = workload.loaded.experts_per_token > 0
    if floor is not None:
        return LosslessCheck(runner, floor, dtype=dtype, is_mixture=is_mixture, penalty=sampler.repetition_penalty)
    floors = []
    for item in items[:_FLOOR_ITEMS]:
        short = shortened(item, _FLOOR_TOKENS)
        answer = autoregressive(workload.runner, short.tokens, short.limits, sampler).tokens
        floors.append(numeric_floor(runner, item, answer))
    largest = float(torch.tensor(floors).max())
    return LosslessCheck(runner, largest, dtype=dtype, is_mixture=is_mixture, penalty=sampler.repetition_penalty)

"""From logits to tokens: greedy, or temperature with top-k, top-p and min-p."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfspec_tune.draft import Certainty
from selfspec_tune.draft.rounds import MOST_MARGIN
from selfspec_tune.requests import Sampling


@dataclass(frozen=True, slots=True)
class Sampler(Sampling):
    """What draws tokens, from one stream of random numbers.

    The same processors serve the draft's and the target's distribution. ``repetition_penalty`` depends on what stands
    before a token, so decoding applies it where that is known (`selfspec_tune.engine.runners.penalty`).
    """

    seed: int = field(default=0, kw_only=True)
    generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    @classmethod
    def of(cls, options: Sampling, seed: int) -> Sampler:
        """What draws as ``options`` say."""
        return cls(**options.sampling, seed=seed)

    def restart(self, seed: int) -> None:
        """Begin a new reproducible stream of random numbers."""
        self.generator.manual_seed(seed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Processed distribution in float32; ``logits`` and result [..., vocabulary]."""
        scores = logits.float() / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            kept = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < kept, -torch.inf)
        if self.top_p < 1.0:
            scores = scores.masked_fill(_outside_nucleus(scores, self.top_p), -torch.inf)
        if self.min_p > 0.0:
            least = scores.amax(-1, keepdim=True) + math.log(self.min_p)  # of probabilities, in the logarithm
            scores = scores.masked_fill(scores < least, -torch.inf)
        return scores.softmax(-1)

    def draw(self, probabilities: Tensor) -> int:
        """One token id from a distribution [vocabulary]."""
        return int(torch.multinomial(probabilities.cpu(), 1, generator=self.generator))

    def uniform(self) -> float:
        """A number from [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


def _outside_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Mask [..., vocabulary] of tokens outside the smallest set whose probability reaches ``top_p``."""
    ordered, indices = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    before[..., 0] = -1.0  # the first is in, however small ``top_p`` is
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, indices, before >= top_p)


def certainty_of(probabilities: Tensor, token: int) -> Certainty:
    """How sure a distribution [vocabulary] is of a ``token`` that was drawn from it."""
    entropy = torch.special.entr(probabilities).sum()
    first, second = torch.cat((probabilities, probabilities.new_zeros(1))).topk(2).values  # of one token no second
    margin = (first.log() - second.log()).clamp(max=MOST_MARGIN)
    return Certainty(*torch.stack((probabilities[token], margin, entropy)).tolist())


def accept(
    sampler: Sampler, drafted: list[int], draft_probabilities: list[Tensor | None], target_probabilities: Tensor
) -> tuple[int, int]:
    """Speculative rejection sampling (Leviathan et al. 2023, algorithm 1).

    ``draft_probabilities``: one [draft vocabulary] per drafted token, a prefix of the
    vocabulary, or None for a token that was not drawn at all (a point mass);
    ``target_probabilities``: [k + 1, vocabulary]. Returns how many drafted tokens are
    accepted and the token that follows them, so that the whole is distributed as the
    target's own sampling.
    """
    for position, token in enumerate(drafted):
        target, draft = target_probabilities[position], draft_probabilities[position]
        share = 1.0 if draft is None else float(draft[token])
        if sampler.uniform() * share < float(target[token]):
            continue
        residual = target.clone()
        if draft is None:
            residual[token] = 0.0
        else:
            residual[: draft.shape[0]] -= draft
            residual.clamp_(min=0.0)
        total = residual.sum()
        # Rounding can leave nothing where the two distributions are equal.
        return position, sampler.draw(residual / total if total > 0 else target)
    return len(drafted), sampler.draw(target_probabilities[len(drafted)])

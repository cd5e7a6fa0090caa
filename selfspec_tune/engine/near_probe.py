"""Whether a runner equals the reference on a short walk from the beginning of the context."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import inf, isfinite

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.models import LoadedModel

NUM_PROMPT_TOKENS = 40  # prompts beyond 33 tokens take another attention path
_NUM_STEPS = 8
_SHORT_PROMPTS = 4
_SHORT = 8  # tokens


def rounds_choices(loaded: LoadedModel) -> bool:
    """Whether rounding decides, of experts that score alike, which one a token goes to.

    That moves everything at some positions of a deep mixture below float32, and what reads their keys and values.
    """
    return loaded.experts_per_token > 0 and loaded.dtype != torch.float32


def quieter(differences: Tensor) -> Tensor:
    """The lower quartile of a mixture's differences, one a position; NaN where any is.

    A fault is at every position, a close choice of experts is not.
    """
    return differences.quantile(0.25, interpolation="lower")


class NearProbe:
    """Looks at prefill, decode, draft, verify and rewind, on arbitrary but fixed tokens; the reference walks once.

    Of a mixture below float32 the quieter positions count (`quieter`), of the ends of several prompts and of the steps
    after the last one; and these steps read the reference's keys and values, so that no position disturbs a later one.
    What the runner itself cached of the last prompt, which is a long one, is held to the reference's layer by layer.
    """

    def __init__(self, loaded: LoadedModel, reference: ReferenceRunner) -> None:
        self._rounds_choices = rounds_choices(loaded)
        self._reference = reference
        num_tokens = max(min(NUM_PROMPT_TOKENS, reference.capacity - _NUM_STEPS), _NUM_STEPS)
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(reference.vocabulary_size, (num_tokens,), generator=generator).tolist()
        self._cached: list[tuple[Tensor, Tensor]] = []  # of a mixture's prompt, by the reference

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """The reference's logits."""
        return self.walk(self._reference)

    def difference(self, runner: FastRunner) -> float:
        """Largest logit difference as a share of the largest logit; inf where one is no number."""
        expected = self.expected
        largest = torch.stack([logits.abs().max() for logits in expected]).max().clamp(min=1e-6)
        shares = []
        for ours, theirs in zip(self.walk(runner), expected, strict=True):
            of_positions = (ours - theirs).abs().amax(-1)
            shares.append((quieter(of_positions) if self._rounds_choices else of_positions.max()) / largest)
        if self._rounds_choices:
            shares.append(self._cached_difference(runner))
        share = float(torch.stack(shares).max())  # keeps a NaN, unlike Python's
        return share if isfinite(share) else inf

    def walk(self, runner: FastRunner | ReferenceRunner) -> tuple[Tensor, Tensor]:
        """Logits [positions, vocabulary] at the ends of prompts, and of the steps after the last prompt."""
        tokens = self._tokens
        runner.reserve(len(tokens) + _NUM_STEPS)
        middle = runner.num_layers // 2
        runner.set_draft(Draft(SkipSet(runner.num_layers, (middle,), (max(middle - 1, 0),))))
        prompts = [prefill(runner, prompt) for prompt in self._prompts()]
        if self._rounds_choices:
            if runner is self._reference:
                self._cached = [_copied(runner.keys_and_values(layer)) for layer in range(runner.num_layers)]
            runner.resume(self._cached, len(tokens))
        steps = [runner.forward(tokens[:1]).logits]
        verified = runner.length
        steps += [runner.forward([token], is_draft=True).logits for token in tokens[1:3]]
        runner.rewind(verified)
        steps.append(runner.forward(tokens[3:7]).logits)
        runner.rewind(verified + 2)
        steps.append(runner.forward(tokens[5:6]).logits)
        return torch.stack(prompts).float(), torch.cat(steps).float()

    def _cached_difference(self, runner: FastRunner) -> Tensor:
        """Of the last prompt's keys and values the median layer's, as a share of its largest.

        The first layer's tell nothing of sub-layers, and a fault in one layer's is in all later ones.
        """
        prefill(runner, self._tokens)
        shares = [
            torch.stack(
                [_share(ours, theirs) for ours, theirs in zip(runner.keys_and_values(layer), cached, strict=True)]
            )
            for layer, cached in enumerate(self._cached)
        ]
        return torch.stack(shares)[1:].amax(-1).quantile(0.5) if len(shares) > 1 else torch.zeros(())

    def _prompts(self) -> Iterable[list[int]]:
        if self._rounds_choices:
            for first in range(_SHORT_PROMPTS):
                yield self._tokens[first * _SHORT :][:_SHORT] or self._tokens
        yield self._tokens


def _share(ours: Tensor, theirs: Tensor) -> Tensor:
    """How far keys or values [kv heads, positions, head size] of the quieter positions are apart."""
    return quieter((ours.float() - theirs.float()).abs().amax((0, 2))) / theirs.float().abs().max().clamp(min=1e-6)


def _copied(cached: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    keys, values = cached
    return keys.clone(), values.clone()

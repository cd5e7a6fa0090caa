"""Whether a runner equals the reference far into the context, without computing what lies before.

Some rules begin at a position or at a distance: windows, chunks, queries that grow, tables chosen by
length. A short walk does not meet them, and a long one takes minutes on a slow CPU. So both caches are
filled with the same keys and values, a short prompt's over and over, and only the last positions of the
context are computed: every rule is then in force, at the price of a few steps. To lower the model's
thresholds instead one would have to know their names, and where modules have copies of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import inf, isfinite

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.near_probe import quieter, rounds_choices
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.models import LoadedModel

_NUM_PROMPT_TOKENS = 24
_STEPS = 9  # positions computed by a pass
_NUM_DECODED = 3  # and one by one
_LEAST_BYTES = 128 * 2**20  # that a cache may take in any case
_SHARE = 1 / 16  # of the weights that it may take else: a step over it then costs little more than one without


class FarProbe:
    """Looks at the context's end, or as far as memory for a cache allows. Computes nothing before it is asked."""

    def __init__(self, loaded: LoadedModel, reference: ReferenceRunner) -> None:
        self._loaded = loaded
        self._reference = reference
        generator = torch.Generator().manual_seed(1)
        self._tokens = torch.randint(reference.vocabulary_size, (_NUM_PROMPT_TOKENS,), generator=generator).tolist()

    @cached_property
    def position(self) -> int | None:
        """Where it looks; None: no further than a short walk from the beginning comes."""
        per_position = sum(keys[:, 0].nbytes + values[:, 0].nbytes for keys, values in self._prompt)
        weights = sum(parameter.nbytes for parameter in self._loaded.model.parameters())
        affordable = int(max(_LEAST_BYTES, _SHARE * weights)) // per_position
        position = min(self._loaded.context_length, affordable) - _STEPS
        return position if position > 2 * _NUM_PROMPT_TOKENS else None

    @cached_property
    def expected(self) -> list[Tensor]:
        """The reference's logits; its long cache is let go."""
        logits = self.walk(self._reference)
        self._reference.resume((), 0)
        return logits

    def difference(self, runner: FastRunner) -> float:
        """How far its logits are from the reference's, as a share of the largest logit; inf where one is no number.

        Of each kind of call the median position counts. A rule that a runner lacks is lacking at all of them,
        while what is cached is no text: at some positions rounding alone, in bfloat16, moves everything. In a
        mixture it does so at more of them, and the quieter positions count (see `near_probe`).
        """
        typical = quieter if rounds_choices(self._loaded) else torch.median
        largest = torch.stack([logits.abs().max() for logits in self.expected]).max().clamp(min=1e-6)
        shares = [
            typical((ours - theirs).abs().amax(-1)) / largest
            for ours, theirs in zip(self.walk(runner), self.expected, strict=True)
        ]
        share = float(torch.stack(shares).max())  # keeps a NaN, unlike Python's max
        return share if isfinite(share) else inf

    def walk(self, runner: FastRunner | ReferenceRunner) -> list[Tensor]:
        """Logits [positions, vocabulary] of decoding, drafting and verifying at `position`."""
        assert self.position is not None
        middle = runner.num_layers // 2
        skip_set = SkipSet(runner.num_layers, (middle,), (max(middle - 1, 0),))
        runner.set_draft(Draft(skip_set, DraftPolicy(max_draft_tokens=_STEPS - 1)))
        runner.reserve(self.position + _STEPS)
        runner.resume(self._stretched(self.position), self.position)
        tokens = self._tokens[:_STEPS]
        logits = [torch.cat([runner.forward([token]).logits for token in tokens[:_NUM_DECODED]])]
        for is_draft in (True, False):
            runner.rewind(self.position)
            logits.append(runner.forward(tokens, is_draft=is_draft).logits)
        return [each.float() for each in logits]

    @cached_property
    def _prompt(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer over what the reference has read already, else over a short prompt."""
        if self._reference.length < _NUM_PROMPT_TOKENS:
            prefill(self._reference, self._tokens[: self._reference.capacity])
        return [self._reference.keys_and_values(layer) for layer in range(self._loaded.num_layers)]

    def _stretched(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [kv heads, length, head size].

        The values grow: were they the same everywhere, attention over a part of them would give what all of them give.
        """
        device = self._prompt[0][0].device
        order = torch.arange(length, device=device) % self._prompt[0][0].shape[1]
        growth = torch.linspace(0.5, 1.5, length, device=device)[:, None]
        for keys, values in self._prompt:
            yield keys[:, order], (values[:, order] * growth).to(values.dtype)

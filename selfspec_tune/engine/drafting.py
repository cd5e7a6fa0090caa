"""The drafting half of a round: from the lookup, from the model, or not at all, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfspec_tune.draft import NgramLookup, Source
from selfspec_tune.engine.ngram import NOTHING, NgramIndex, common_prefix
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.sampling import Sampler
from selfspec_tune.policies import PolicyState


@dataclass(frozen=True, slots=True)
class Drafted:
    """The tokens of one round and, when sampling, the distribution that each was drawn from.

    A distribution is [draft vocabulary]; None is a point mass on the token itself.
    """

    source: Source
    tokens: list[int] = field(default_factory=list)
    distributions: list[Tensor | None] = field(default_factory=list)


class Drafter:
    """Drafts round by round within one generation that begins with ``context``."""

    def __init__(
        self,
        runner: Runner,
        lookup: NgramLookup | None,
        policy: PolicyState,
        sampler: Sampler,
        is_eos: Callable[[int], bool],
        context: Sequence[int],
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._is_eos = is_eos
        self._policy = policy
        self._index = None if lookup is None else NgramIndex(lookup, context)
        self._found = NOTHING

    def draft(self, token: int, room: int) -> Drafted:
        """Up to ``room`` tokens to follow ``token``, the last one of the output."""
        self._found = NOTHING if self._index is None else self._index.find()
        looked_up = self._until_eos(self._found.tokens)
        plan = self._policy.begin(room, len(looked_up), self._found.match_length)
        if plan.source is Source.MODEL:
            return self._by_model(token, plan.num_tokens)
        taken = looked_up[: plan.num_tokens]
        return Drafted(plan.source, taken, [None] * len(taken))

    def learn(self, drafted: Drafted, num_accepted: int, tokens: Sequence[int]) -> None:
        """Take note of the round's outcome: ``tokens`` are the accepted ones and one more."""
        agreed = common_prefix(self._found.tokens, tokens)
        self._policy.update(num_accepted, len(drafted.tokens), agreed)
        if self._index is not None:
            self._index.extend(tokens)

    def _until_eos(self, tokens: Sequence[int]) -> list[int]:
        for index, token in enumerate(tokens):
            if self._is_eos(token):
                return list(tokens[: index + 1])
        return list(tokens)

    def _by_model(self, token: int, most: int) -> Drafted:
        """Draft until the policy stops, an end-of-sequence token, or ``most`` tokens."""
        runner, sampler, policy = self._runner, self._sampler, self._policy
        drafted = Drafted(Source.MODEL)
        verified = runner.length
        probability = 1.0
        while len(drafted.tokens) < most:
            logits = runner.draft_step(token)
            if sampler.greedy:
                token = int(logits.argmax())
                if policy.needs_probability:
                    scores = logits.float()
                    probability = float(torch.exp(scores[token] - scores.logsumexp(-1)))
            else:
                distribution = sampler.probabilities(logits)
                token = sampler.draw(distribution)
                drafted.distributions.append(distribution)
                probability = float(distribution[token])
            drafted.tokens.append(token)
            if not policy.wants_more(len(drafted.tokens), probability) or self._is_eos(token):
                break
        runner.rewind(verified)
        return drafted

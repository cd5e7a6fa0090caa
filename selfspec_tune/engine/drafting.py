"""The drafting half of a round: from the lookup, from the model, or not at all, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfspec_tune.draft import NgramLookup, Source
from selfspec_tune.engine.ngram import NOTHING, NgramIndex, common_prefix
from selfspec_tune.engine.runner import GreedySteps, Runner
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
    """Drafts round by round within one generation that begins with ``context``.

    ``greedy``: the runner's greedy steps, None when sampling.
    """

    def __init__(
        self,
        runner: Runner,
        greedy: GreedySteps | None,
        lookup: NgramLookup | None,
        policy: PolicyState,
        sampler: Sampler,
        is_eos: Callable[[int], bool],
        context: Sequence[int],
    ) -> None:
        self._runner = runner
        self._greedy = greedy
        # A policy that stops for nothing: all steps at once, so that the device need not wait for the host.
        self._is_unasked = isinstance(runner, GreedySteps) and not policy.needs_probability
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
        verified = self._runner.length
        if self._greedy is None:
            drafted = self._by_drawing(token, most)
        elif self._is_unasked:
            drafted = Drafted(Source.MODEL, self._until_eos(self._greedy.draft_greedy(token, most)[0]))
        else:
            drafted = self._greedily(self._greedy, token, most)
        self._runner.rewind(verified)
        return drafted

    def _greedily(self, greedy: GreedySteps, token: int, most: int) -> Drafted:
        drafted = Drafted(Source.MODEL)
        while len(drafted.tokens) < most:
            (token,), (probability,) = greedy.draft_greedy(token, 1)
            drafted.tokens.append(token)
            if self._is_enough(drafted, probability):
                break
        return drafted

    def _by_drawing(self, token: int, most: int) -> Drafted:
        drafted = Drafted(Source.MODEL)
        while len(drafted.tokens) < most:
            distribution = self._sampler.probabilities(self._runner.draft_step(token))
            token = self._sampler.draw(distribution)
            drafted.tokens.append(token)
            drafted.distributions.append(distribution)
            if self._is_enough(drafted, float(distribution[token])):
                break
        return drafted

    def _is_enough(self, drafted: Drafted, probability: float) -> bool:
        """Whether drafting ends after the last token, which had this probability."""
        wants_more = self._policy.wants_more(len(drafted.tokens), probability)
        return not wants_more or self._is_eos(drafted.tokens[-1])

"""The drafting half of a round: from the context, by the model, or not at all, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

from torch import Tensor

from selfspec_tune.draft import DraftSource, PolicyState, Source
from selfspec_tune.draft.source import NOTHING, SourceState, begin, common_prefix
from selfspec_tune.engine.runner import GreedySteps, Runner
from selfspec_tune.engine.sampling import Sampler


@dataclass(slots=True)
class Drafted:
    """The tokens of one round and, when sampling, the distribution that each was drawn from.

    A distribution is [draft vocabulary]; None is a point mass on the token itself.
    ``num_passes``: of the draft through the model, which tried ``num_guesses`` tokens that a source found.
    """

    source: str
    tokens: list[int] = field(default_factory=list)
    distributions: list[Tensor | None] = field(default_factory=list)
    num_passes: int = 0
    num_guesses: int = 0


class Drafter:
    """Drafts round by round within one generation that begins with ``context``.

    ``greedy``: the runner's greedy steps, None where drafts are sampled.
    """

    def __init__(
        self,
        runner: Runner,
        greedy: GreedySteps | None,
        sources: Sequence[DraftSource],
        policy: PolicyState,
        sampler: Sampler,
        is_eos: Callable[[int], bool],
        context: Sequence[int],
    ) -> None:
        self._policy = policy
        self._is_eos = is_eos
        self._context = begin(sources, context)
        most_guesses = max((source.draft_tokens for source in sources), default=0)
        self._model = ModelSource(runner, greedy, policy, sampler, is_eos, self._context, most_guesses)
        self._found = NOTHING

    def draft(self, token: int, room: int) -> Drafted:
        """Up to ``room`` tokens to follow ``token``, the last one of the output."""
        self._found = found = NOTHING if self._context is None else self._context.find()
        offered = until_eos(found.tokens, self._is_eos)
        plan = self._policy.begin(room, len(offered), found.match_length, found.source)
        if plan.source is Source.MODEL:
            return self._model.draft(token, plan.num_tokens)
        taken = offered[: plan.num_tokens]
        return Drafted(plan.source, taken, [None] * len(taken))

    def learn(self, drafted: Drafted, num_accepted: int, tokens: Sequence[int]) -> None:
        """Take note of the round's outcome: ``tokens`` are the accepted ones and one more."""
        agreed = common_prefix(self._found.tokens, tokens)
        self._policy.update(num_accepted, len(drafted.tokens), agreed, drafted.num_passes, drafted.num_guesses)
        if self._context is not None:
            self._context.extend(tokens)


def until_eos(tokens: Sequence[int], is_eos: Callable[[int], bool]) -> list[int]:
    """``tokens`` up to the first that ends a sequence, that one included."""
    for index, token in enumerate(tokens):
        if is_eos(token):
            return list(tokens[: index + 1])
    return list(tokens)


class ModelSource:
    """The model's own drafts: pass by pass through the draft, or at once where nothing decides between two steps.

    ``context``: what its passes try tokens from, at most ``most_guesses`` each.
    """

    def __init__(
        self,
        runner: Runner,
        greedy: GreedySteps | None,
        policy: PolicyState,
        sampler: Sampler,
        is_eos: Callable[[int], bool],
        context: SourceState | None,
        most_guesses: int,
    ) -> None:
        self._runner = runner
        self._greedy = greedy
        self._policy = policy
        self._sampler = sampler
        self._is_eos = is_eos
        self._context = context
        self._most_guesses = most_guesses
        # A policy that stops for nothing: all steps at once, so that the device need not wait for the host.
        is_own = isinstance(runner, GreedySteps) and not most_guesses
        self._is_unasked = is_own and not policy.needs_probability

    def draft(self, token: int, most: int) -> Drafted:
        """Draft until the policy stops, an end-of-sequence token, or ``most`` tokens."""
        verified = self._runner.length
        if self._greedy is not None and self._is_unasked:
            tokens = until_eos(self._greedy.draft_greedy(token, most)[0], self._is_eos)
            drafted = Drafted(Source.MODEL, tokens, num_passes=most)
        else:
            drafted = self._in_passes(token, most)
        self._runner.rewind(verified)
        return drafted

    def _in_passes(self, token: int, most: int) -> Drafted:
        """Pass by pass: each over the last token and what a source finds after it, of which the agreed part is kept.

        A token that differs from the guess is the draft's own all the same: what it is drawn
        from depends on the tokens before it alone.
        """
        verified, context = self._runner.length, 0 if self._context is None else self._context.length
        drafted = Drafted(Source.MODEL)
        is_enough = most < 1
        while not is_enough:
            self._runner.rewind(verified + len(drafted.tokens))
            guess = self._guess(most - len(drafted.tokens) - 1)
            drafted.num_passes += 1
            drafted.num_guesses += len(guess)
            is_enough = self._take(drafted, guess, *self._pass([token, *guess])) or len(drafted.tokens) >= most
            token = drafted.tokens[-1]
        if self._context is not None:
            self._context.rewind(context)
        return drafted

    def _guess(self, most: int) -> list[int]:
        """Tokens to try in a draft pass: of those that a source finds after what is drafted so far."""
        most = min(most, self._most_guesses)
        if self._context is None or most < 1:
            return []
        found = self._context.find()
        most = min(most, len(found.tokens), found.draft_tokens)
        num_worthwhile = self._policy.num_guesses(most, found.match_length, found.source)
        return list(found.tokens[:num_worthwhile])

    def _pass(self, tokens: Sequence[int]) -> tuple[list[int], list[float], list[Tensor | None]]:
        """What the draft puts after each of ``tokens``: the token, its probability and its distribution."""
        is_step = len(tokens) == 1  # which a runner may have on its device already
        if self._greedy is not None:
            greedy = self._greedy
            chosen = greedy.draft_greedy(tokens[0], 1) if is_step else greedy.draft_pass_greedy(tokens)
            return *chosen, [None] * len(tokens)
        logits = self._runner.draft_step(tokens[0])[None] if is_step else self._runner.draft_pass(tokens)
        # A draft may overflow where the model does not; it may propose anything.
        logits = logits.nan_to_num(0.0, 0.0, -inf)
        distributions = [self._sampler.probabilities(row) for row in logits]
        drawn = [self._sampler.draw(distribution) for distribution in distributions]
        probabilities = [float(row[token]) for row, token in zip(distributions, drawn, strict=True)]
        return drawn, probabilities, list(distributions)

    def _take(
        self,
        drafted: Drafted,
        guess: Sequence[int],
        following: Sequence[int],
        probabilities: Sequence[float],
        distributions: Sequence[Tensor | None],
    ) -> bool:
        """Keep what a pass put after the last token and after each right guess; whether that is enough."""
        num_agreed = common_prefix(guess, following)
        for place in range(num_agreed + 1):
            drafted.tokens.append(following[place])
            if self._greedy is None:
                drafted.distributions.append(distributions[place])
            if self._context is not None:
                self._context.extend(following[place : place + 1])
            if self._is_enough(drafted, probabilities[place], num_agreed - place):
                return True
        return False

    def _is_enough(self, drafted: Drafted, probability: float, num_ahead: int) -> bool:
        """Whether drafting ends after the last token, which had this probability; ``num_ahead`` more are known."""
        probability = probability if isfinite(probability) else 0.0  # of a draft that overflows
        wants_more = self._policy.wants_more(len(drafted.tokens), probability, num_ahead)
        return not wants_more or self._is_eos(drafted.tokens[-1])

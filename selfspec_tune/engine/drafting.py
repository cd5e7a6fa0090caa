"""The drafting half of a round: from lookup in the context, from the model, or not at all, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

from torch import Tensor

from selfspec_tune.draft import NgramLookup, PolicyState, Round, Source
from selfspec_tune.engine.runner import DraftsAhead, Runner, Want
from selfspec_tune.engine.sampling import Sampler

# How far back a match is followed to tell how long it is; the policy tells no longer ones apart.
_LONGEST_MATCH = 16


@dataclass(frozen=True, slots=True)
class Found:
    """``tokens`` that followed the context's last ``match_length`` tokens when they occurred before."""

    tokens: tuple[int, ...] = ()
    match_length: int = 0


NOTHING = Found()


class NgramIndex:
    """Every n-gram of the context with the place after its most recent occurrence.

    Adding a token takes constant time. The context's own last tokens are not indexed until
    another follows them, so a lookup never finds the suffix itself.
    """

    def __init__(self, lookup: NgramLookup, tokens: Iterable[int] = ()) -> None:
        self._lookup = lookup
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._before: list[list[tuple[tuple[int, ...], int | None]]] = []  # what each token's n-grams replaced
        self.extend(tokens)

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add ``tokens`` to the end of the context."""
        lengths = range(self._lookup.min_match, self._lookup.max_match + 1)
        for token in tokens:
            end = len(self._tokens)
            replaced = []
            for length in lengths:
                if length > end:
                    break
                ngram = tuple(self._tokens[end - length :])
                replaced.append((ngram, self._after.get(ngram)))
                self._after[ngram] = end
            self._tokens.append(token)
            self._before.append(replaced)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        while len(self._tokens) > length:
            self._tokens.pop()
            for ngram, place in self._before.pop():
                if place is None:
                    del self._after[ngram]
                else:
                    self._after[ngram] = place

    def find(self) -> Found:
        """What followed the longest suffix that occurred before, at its most recent occurrence."""
        context = self._tokens
        for length in range(min(self._lookup.max_match, len(context)), self._lookup.min_match - 1, -1):
            place = self._after.get(tuple(context[-length:]))
            if place is not None:
                return Found(self._continuation(place), self._match_length(place, length))
        return NOTHING

    def _continuation(self, place: int) -> tuple[int, ...]:
        """The tokens from ``place`` on; a copy that reaches the context's end goes on with what it has copied."""
        tokens = self._tokens[place : place + self._lookup.max_tokens]
        period = len(tokens)
        return tuple(tokens[index % period] for index in range(self._lookup.max_tokens))

    def _match_length(self, place: int, known: int) -> int:
        """For how many tokens backwards the context before ``place`` equals its end."""
        context, length = self._tokens, known
        most = min(place, _LONGEST_MATCH)
        while length < most and context[place - 1 - length] == context[-1 - length]:
            length += 1
        return length


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens two sequences begin."""
    differing = (index for index, (ours, theirs) in enumerate(zip(first, second, strict=False)) if ours != theirs)
    return next(differing, min(len(first), len(second)))


@dataclass(slots=True)
class Drafted:
    """The tokens of one round and, when sampling, the distribution that each was drawn from.

    A distribution is [draft vocabulary]; None is a point mass on the token itself.
    ``num_passes``: of the draft through the model, which tried ``num_guesses`` looked-up tokens.
    """

    source: Source
    tokens: list[int] = field(default_factory=list)
    distributions: list[Tensor | None] = field(default_factory=list)
    num_passes: int = 0
    num_guesses: int = 0


class Drafter:
    """Drafts round by round within one generation that begins with ``context``.

    ``is_sampled``: whether tokens are drawn, by ``sampler``, rather than the most probable ones taken.
    """

    def __init__(
        self,
        runner: Runner,
        lookup: NgramLookup | None,
        policy: PolicyState,
        sampler: Sampler,
        is_eos: Callable[[int], bool],
        context: Sequence[int],
        *,
        is_sampled: bool,
    ) -> None:
        self._runner = runner
        self._want = Want.LOGITS if is_sampled else Want.of_draft(needs_probability=policy.needs_probability)
        self._draft_tokens = lookup.draft_tokens if lookup is not None else 0
        # A policy that stops for nothing: all steps at once, so that the device need not wait for the host.
        is_unasked = self._want is Want.TOKENS and not self._draft_tokens
        self._ahead = runner if is_unasked and isinstance(runner, DraftsAhead) else None
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

    def learn(self, round_: Round, tokens: Sequence[int]) -> None:
        """Take note of the round's outcome: ``tokens`` are the accepted ones and one more."""
        agreed = common_prefix(self._found.tokens, tokens)
        self._policy.update(round_, agreed)
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
        if self._ahead is not None:
            tokens = self._until_eos(self._ahead.draft_ahead(token, most))
            drafted = Drafted(Source.MODEL, tokens, num_passes=most)
        else:
            drafted = self._in_passes(token, most)
        self._runner.rewind(verified)
        return drafted

    def _in_passes(self, token: int, most: int) -> Drafted:
        """Pass by pass: each over the last token and what the lookup finds after it, of which the agreed part is kept.

        A token that differs from the guess is the draft's own all the same: what it is drawn
        from depends on the tokens before it alone.
        """
        verified, context = self._runner.length, self._index.length if self._index else 0
        drafted = Drafted(Source.MODEL)
        is_enough = most < 1
        while not is_enough:
            self._runner.rewind(verified + len(drafted.tokens))
            guess = self._guess(most - len(drafted.tokens) - 1)
            drafted.num_passes += 1
            drafted.num_guesses += len(guess)
            is_enough = self._take(drafted, guess, *self._pass([token, *guess])) or len(drafted.tokens) >= most
            token = drafted.tokens[-1]
        if self._index is not None:
            self._index.rewind(context)
        return drafted

    def _guess(self, most: int) -> list[int]:
        """Tokens to try in a draft pass: of those that the lookup finds after what is drafted so far."""
        most = min(most, self._draft_tokens)
        if self._index is None or most < 1:
            return []
        found = self._index.find()
        num_worthwhile = self._policy.num_guesses(min(most, len(found.tokens)), found.match_length)
        return list(found.tokens[:num_worthwhile])

    def _pass(self, tokens: Sequence[int]) -> tuple[list[int], list[float], list[Tensor | None]]:
        """What the draft puts after each of ``tokens``: the token, its probability and its distribution."""
        scores = self._runner.forward(tokens, is_draft=True, want=self._want)
        if self._want is not Want.LOGITS:
            return scores.tokens, scores.probabilities or [1.0] * len(tokens), [None] * len(tokens)
        # A draft may overflow where the model does not; it may propose anything.
        logits = scores.logits.nan_to_num(0.0, 0.0, -inf)
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
            if self._want is Want.LOGITS:
                drafted.distributions.append(distributions[place])
            if self._index is not None:
                self._index.extend(following[place : place + 1])
            if self._is_enough(drafted, probabilities[place], num_agreed - place):
                return True
        return False

    def _is_enough(self, drafted: Drafted, probability: float, num_ahead: int) -> bool:
        """Whether drafting ends after the last token, which had this probability; ``num_ahead`` more are known."""
        probability = probability if isfinite(probability) else 0.0  # of a draft that overflows
        wants_more = self._policy.wants_more(len(drafted.tokens), probability, num_ahead)
        return not wants_more or self._is_eos(drafted.tokens[-1])

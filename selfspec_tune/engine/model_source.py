"""The model's own drafts: pass after pass through the draft, which may try tokens that other sources found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

import torch
from torch import Tensor

from selfspec_tune.draft import Certainty, PolicyState, Round, Source
from selfspec_tune.draft.rounds import UNSURE
from selfspec_tune.draft.source import SourceState, common_prefix
from selfspec_tune.engine.runner import DraftsAhead, Runner, Want
from selfspec_tune.engine.sampling import Sampler, certainty_of


@dataclass(slots=True)
class Drafted:
    """The tokens of one round and, when sampling, the distribution that each was drawn from.

    A distribution is [draft vocabulary]; None is a point mass on the token itself.
    ``num_passes``: of the draft through the model, which tried ``num_guesses`` tokens that a source found.
    ``certainties`` and ``match_length`` as in `Round`.
    """

    source: str
    tokens: list[int] = field(default_factory=list)
    distributions: list[Tensor | None] = field(default_factory=list)
    num_passes: int = 0
    num_guesses: int = 0
    certainties: list[Certainty] = field(default_factory=list)
    match_length: int = 0

    def round(self, num_accepted: int) -> Round:
        """The round's record, once its verification has accepted so many of the tokens."""
        return Round(
            len(self.tokens),
            num_accepted,
            self.source,
            self.num_passes,
            self.num_guesses,
            tuple(certainty.rounded for certainty in self.certainties),
            self.match_length,
        )


def until_eos(tokens: Sequence[int], is_eos: Callable[[int], bool]) -> list[int]:
    """``tokens`` up to the first that ends a sequence, that one included."""
    for index, token in enumerate(tokens):
        if is_eos(token):
            return list(tokens[: index + 1])
    return list(tokens)


class ModelSource:
    """The model's own drafts: pass by pass through the draft, or at once where nothing decides between two steps.

    ``sampler`` draws them; None: the most probable ones are taken. ``context``: what its passes try tokens from, at
    most ``most_guesses`` each.
    """

    def __init__(
        self,
        runner: Runner,
        policy: PolicyState,
        sampler: Sampler | None,
        is_eos: Callable[[int], bool],
        context: SourceState | None,
        most_guesses: int,
    ) -> None:
        self._runner = runner
        self._policy = policy
        self._sampler = sampler
        self._is_eos = is_eos
        self._context = context
        self._most_guesses = most_guesses
        self._want = Want.LOGITS if sampler else Want.CERTAINTIES
        # A policy that stops for nothing: all steps at once, so that the device need not wait for the host.
        is_unasked = sampler is None and not policy.needs_probability and not most_guesses
        self._ahead = runner if is_unasked and isinstance(runner, DraftsAhead) else None

    def draft(self, token: int, most: int) -> Drafted:
        """Draft until the policy stops, an end-of-sequence token, or ``most`` tokens."""
        verified = self._runner.length
        if self._ahead is not None:
            ahead = self._ahead.draft_ahead(token, most)
            tokens = until_eos(ahead.tokens, self._is_eos)
            certainties = list(map(_as_known, ahead.certainties[: len(tokens)]))
            drafted = Drafted(Source.MODEL, tokens, num_passes=most, certainties=certainties)
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

    def _pass(self, tokens: Sequence[int]) -> tuple[list[int], list[Certainty], list[Tensor | None]]:
        """What the draft puts after each of ``tokens``: the token, how sure it is of it, and its distribution."""
        scores = self._runner.forward(tokens, is_draft=True, want=self._want)
        if self._sampler is None:
            return scores.tokens, list(map(_as_known, scores.certainties)), [None] * len(tokens)
        # A draft may overflow where the model does not; it may propose anything.
        logits, ids = scores.logits.nan_to_num(0.0, 0.0, -inf), self._runner.draft_ids
        chosen_from = logits if ids is None else logits[:, ids]  # time goes by how many there are
        distributions = [self._sampler.probabilities(row) for row in chosen_from]
        drawn = [self._sampler.draw(distribution) for distribution in distributions]
        certainties = [_as_known(certainty_of(row, place)) for row, place in zip(distributions, drawn, strict=True)]
        if ids is None:
            return drawn, certainties, list(distributions)
        whole = logits.new_zeros(logits.shape, dtype=torch.float32)
        whole[:, ids] = torch.stack(distributions)
        return [int(ids[place]) for place in drawn], certainties, list(whole)

    def _take(
        self,
        drafted: Drafted,
        guess: Sequence[int],
        following: Sequence[int],
        certainties: Sequence[Certainty],
        distributions: Sequence[Tensor | None],
    ) -> bool:
        """Keep what a pass put after the last token and after each right guess; whether that is enough."""
        num_agreed = common_prefix(guess, following)
        for place in range(num_agreed + 1):
            drafted.tokens.append(following[place])
            drafted.certainties.append(certainties[place])
            if self._sampler is not None:
                drafted.distributions.append(distributions[place])
            if self._context is not None:
                self._context.extend(following[place : place + 1])
            if self._is_enough(drafted, num_agreed - place):
                return True
        return False

    def _is_enough(self, drafted: Drafted, num_ahead: int) -> bool:
        """Whether drafting ends after the last token; ``num_ahead`` more are known."""
        last = drafted.certainties[-1]
        # A token that was drawn may be another than the one whose lead is known.
        sureness = last.lead if self._policy.uses_lead and self._sampler is None else last.confidence
        wants_more = self._policy.wants_more(len(drafted.tokens), sureness, num_ahead)
        return not wants_more or self._is_eos(drafted.tokens[-1])


def _as_known(certainty: Certainty) -> Certainty:
    """It itself; of a draft that overflows, `UNSURE`."""
    return certainty if all(map(isfinite, certainty)) else UNSURE

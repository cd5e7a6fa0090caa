"""The drafting half of a round: from the context, by the model, or not at all, as the policy decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfspec_tune.draft import DraftSource, PolicyState, Round, Source
from selfspec_tune.draft.source import NOTHING, begin, common_prefix
from selfspec_tune.engine.model_source import Drafted, ModelSource, until_eos
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.sampling import Sampler


class Drafter:
    """Drafts round by round within one generation that begins with ``context``.

    ``sampler`` draws the model's tokens; None: the most probable ones are taken.
    """

    def __init__(
        self,
        runner: Runner,
        sources: Sequence[DraftSource],
        policy: PolicyState,
        sampler: Sampler | None,
        is_eos: Callable[[int], bool],
        context: Sequence[int],
    ) -> None:
        self._runner = runner
        self._policy = policy
        self._is_eos = is_eos
        self._context = begin(sources, context)
        runner.know(context)
        most_guesses = max((source.draft_tokens for source in sources), default=0)
        self._model = ModelSource(runner, policy, sampler, is_eos, self._context, most_guesses)
        self._found = NOTHING

    def draft(self, token: int, room: int) -> Drafted:
        """Up to ``room`` tokens to follow ``token``, the last one of the output."""
        self._found = found = NOTHING if self._context is None else self._context.find()
        offered = until_eos(found.tokens, self._is_eos)
        plan = self._policy.begin(room, len(offered), found.match_length, found.source)
        if plan.source is Source.MODEL:
            return self._model.draft(token, plan.num_tokens)
        taken = offered[: plan.num_tokens]
        return Drafted(plan.source, taken, [None] * len(taken), match_length=found.match_length if taken else 0)

    def learn(self, round_: Round, tokens: Sequence[int]) -> None:
        """Take note of the round's outcome: ``tokens`` are the accepted ones and one more."""
        agreed = common_prefix(self._found.tokens, tokens)
        self._policy.update(round_, agreed)
        self._runner.know(tokens)
        if self._context is not None:
            self._context.extend(tokens)

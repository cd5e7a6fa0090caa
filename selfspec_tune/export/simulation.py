"""What the loops of runtimes should count, simulated in our own engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.rounds import num_accepted, num_drafted
from selfspec_tune.draft.skip_set import SkipSet

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel


class Simulation(Protocol):
    """What a runtime's loop should count on a prompt."""

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        """Drafted and accepted tokens on the way to the runtime's ``answer``, which may have ``budget`` tokens."""


def server_loop(
    loaded: LoadedModel,
    skip_set: SkipSet,
    draft_tokens: int,
    *,
    first_is_plain: bool,
    is_bounded: bool = True,
    experts: int | None = None,
) -> Simulation:
    """The loop of a server with a draft model, along the server's own answer, whose roundings may differ from ours.

    The draft reads every token itself. ``first_is_plain``: whether reading the prompt gives a first token, as in
    llama.cpp; transformers drafts before it has read the prompt. ``is_bounded``: whether fewer tokens are drafted where
    the budget ends. ``experts``: to how many experts a token goes in the draft; None: to as many as in the model.
    """
    from selfspec_tune.draft.source import common_prefix
    from selfspec_tune.engine import choose_runner
    from selfspec_tune.engine.runner import Want, prefill
    from selfspec_tune.engine.runners.standalone import StandaloneRunner

    runner = StandaloneRunner.of(choose_runner(loaded, "auto", _untold), loaded)
    draft = Draft(skip_set, DraftPolicy(PolicyKind.FIXED, draft_tokens), experts=experts)

    def simulate(prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        if not answer:
            return 0, 0
        runner.reserve(len(prompt) + budget + draft_tokens + 1)
        runner.set_draft(draft)
        read = prompt if first_is_plain else prompt[:-1]
        prefill(runner, read)
        token, produced = (answer[0], 1) if first_is_plain else (prompt[-1], 0)
        drafted = accepted = 0
        while produced < len(answer):
            start, room = runner.length, draft_tokens
            if is_bounded:
                room = min(room, budget - produced - 1)
            tokens = runner.draft_ahead(token, room).tokens
            runner.rewind(start)
            targets = runner.forward([token, *tokens], want=Want.TOKENS).tokens
            said = answer[produced : produced + len(targets)]
            targets = [*said, *targets[len(said) :]]  # past its end, our own
            agreed = common_prefix(tokens, targets)
            runner.rewind(start + agreed + 1)
            token, produced = targets[agreed], produced + agreed + 1
            drafted, accepted = drafted + len(tokens), accepted + agreed
        return drafted, accepted

    return simulate


def shared_loop(loaded: LoadedModel, draft: Draft) -> Simulation:
    """Our own loop, in which the draft shares the model's cache."""
    from selfspec_tune.engine import Limits, Sampler, choose_runner, self_speculative

    runner = choose_runner(loaded, "auto", _untold)

    def simulate(prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        made = self_speculative(runner, prompt, Limits(budget), Sampler(), draft)
        return num_drafted(made.rounds), num_accepted(made.rounds)

    return simulate


def _untold(text: str) -> None:
    """Notices about speed: nobody times this."""

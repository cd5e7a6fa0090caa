"""Who drafts, on logits read off tables: lookup, the model, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Source
from selfspec_tune.draft.decisions import RuleState
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.policy import Plan
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.drafting import Drafter
from selfspec_tune.engine.model_source import Drafted
from selfspec_tune.engine.runner import Scores, Want, prefill
from tests.engine_kit import STEPS, TableRunner, chain, every_policy, kind_of
from tests.runs import sources_of

GREEDY = Sampler()
LOOKUP = NgramLookup(max_match=3, min_match=1, max_tokens=4)
POLICIES = every_policy(max_draft_tokens=4, exit_threshold=0.25)
SURE = 8.0


def _run(
    prompt: Sequence[int], draft: Draft, *, guess_step: int = 1, limit: int = 12
) -> tuple[TableRunner, list[str | None]]:
    runner = TableRunner(chain(8, SURE), chain(8, SURE, step=guess_step))
    generation = self_speculative(runner, prompt, Limits(limit), GREEDY, draft, STEPS)
    assert generation.tokens == [(prompt[-1] + 1 + i) % 8 for i in range(limit)]
    return runner, sources_of(generation.rounds)


def test_the_lookup_comes_first_and_the_model_drafts_where_it_finds_nothing() -> None:
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 2), sources=(NgramLookup(2, 2, 3),))
    runner, sources = _run([0], draft, limit=16)
    assert sources[:3] == ["model", "model", "model"]
    assert sources[3] == "ngram"  # 0 1 … 7 0 1: the pair (0, 1) has come again
    assert runner.verified[3] == [2, 3, 4, 5] or runner.verified[3][1:] == [3, 4, 5]


REPEATED = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]


def _drafting_only(draft_tokens: int, policy: DraftPolicy, guess_step: int = 1) -> tuple[TableRunner, Drafted]:
    """Lookup that finds at once, under a policy that has the model draft all the same."""
    lookup = NgramLookup(2, 2, 8, draft_tokens)
    runner = TableRunner(chain(8, SURE), chain(8, SURE, step=guess_step))
    prefill(runner, REPEATED)
    drafter = Drafter(runner, [lookup], _ByModel(policy), None, lambda token: False, REPEATED)
    drafted = drafter.draft(REPEATED[-1], 100)
    return runner, drafted


class _ByModel(RuleState):
    def begin(self, room: int, num_found: int = 0, match_length: int = 0, source: str = Source.PLAIN) -> Plan:
        return super().begin(room)


@pytest.mark.parametrize(("draft_tokens", "passes"), [(0, 6), (1, 3), (2, 2), (4, 2), (8, 1)])
def test_tokens_that_the_draft_agrees_with_need_no_pass_of_their_own(draft_tokens: int, passes: int) -> None:
    runner, drafted = _drafting_only(draft_tokens, DraftPolicy(PolicyKind.THRESHOLD, 6, 0.1))
    assert drafted.tokens == [4, 5, 6, 7, 0, 1]
    assert drafted.num_passes == passes
    assert runner.length == len(REPEATED)


def test_a_wrong_guess_costs_the_draft_nothing_but_its_width() -> None:
    runner, drafted = _drafting_only(4, DraftPolicy(PolicyKind.THRESHOLD, 3, 0.1), guess_step=2)
    assert drafted.tokens == [5, 7, 1]
    assert (drafted.num_passes, drafted.num_guesses) == (3, sum(len(tokens) - 1 for tokens in runner.draft_passes))
    assert runner.draft_passes[0] == [3, 4, 5]  # no more guesses than are wanted


def test_the_index_forgets_what_was_only_drafted() -> None:
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.THRESHOLD, 6, 0.1), sources=(NgramLookup(2, 2, 8, 4),))
    wrong = TableRunner(chain(8, SURE), chain(8, SURE, step=3))
    generation = self_speculative(wrong, REPEATED, Limits(30), GREEDY, draft, STEPS)
    assert generation.tokens == [(4 + i) % 8 for i in range(30)]


def test_a_lookup_alone_never_runs_the_draft() -> None:
    class NoDrafts(TableRunner):
        def row_after(self, token: int, *, is_draft: bool) -> Tensor:
            assert not is_draft, "the model drafted"
            return super().row_after(token, is_draft=is_draft)

    draft = Draft(SkipSet.empty(1), sources=(NgramLookup(1, 1, 3),), model_drafts=False)
    generation = self_speculative(NoDrafts(chain(8, SURE)), [0], Limits(20), GREEDY, draft)
    assert set(sources_of(generation.rounds)) == {"plain", "ngram"}
    assert sources_of(generation.rounds)[:7] == ["plain"] * 7


def test_looked_up_tokens_need_not_be_in_the_drafts_vocabulary() -> None:
    draft = Draft(SkipSet.empty(1), vocabulary=2, sources=(NgramLookup(1, 1, 3),), model_drafts=False)
    runner, sources = _run([5, 6, 7, 5], draft)
    assert "ngram" in sources
    assert any(max(tokens[1:], default=0) >= 2 for tokens in runner.verified)


def test_a_lookup_ends_with_an_end_of_sequence_token() -> None:
    runner = TableRunner(chain(8, SURE))
    draft = Draft(SkipSet.empty(1), sources=(NgramLookup(1, 1, 6),), model_drafts=False)
    generation = self_speculative(runner, [1, 2, 3, 4, 5, 0], Limits(20, frozenset({3})), GREEDY, draft)
    assert runner.verified == [[1, 2, 3]]
    assert (generation.tokens, generation.stop_reason) == ([1, 2, 3], "eos")


def test_a_cost_aware_policy_leaves_a_wrong_draft_for_plain_steps() -> None:
    dear = replace(STEPS, draft=0.6)
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.COST_AWARE, 4))
    runner = TableRunner(chain(8, SURE), chain(8, SURE, step=3))
    generation = self_speculative(runner, [0], Limits(60), GREEDY, draft, dear)
    assert sources_of(generation.rounds).count(Source.PLAIN) > 50


def test_a_cost_aware_policy_is_refused_before_anything_runs_without_costs() -> None:
    runner = TableRunner(chain(8, SURE))
    with pytest.raises(ValueError, match="needs the step costs"):
        self_speculative(runner, [0], Limits(4), GREEDY, Draft(SkipSet.empty(1), POLICIES[-1]))
    assert runner.tokens == []


def test_how_sure_a_pass_is_costs_only_where_it_drafts() -> None:
    wanted: set[tuple[str, Want]] = set()

    class Watched(TableRunner):
        def forward(self, tokens: Sequence[int], *, want: Want = Want.LOGITS, **how: Any) -> Scores:
            wanted.add((kind_of(tokens, **how), want))
            return super().forward(tokens, want=want, **how)

    for policy in POLICIES:
        draft = Draft(SkipSet.empty(1), policy, sources=(LOOKUP,))
        self_speculative(Watched(chain(8, SURE)), [0], Limits(30), GREEDY, draft, STEPS)
    autoregressive(Watched(chain(8, SURE)), [0], Limits(4), GREEDY)
    by_kind = {kind: {want for which, want in wanted if which == kind} for kind, _ in wanted}
    assert by_kind.pop("draft") == {Want.CERTAINTIES}
    assert by_kind == {"prefill": {Want.LOGITS}, "step": {Want.TOKENS}, "verification": {Want.TOKENS}}

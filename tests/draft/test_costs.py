from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from selfspec_tune.draft import Draft, DraftPrecision, Precision, Round
from selfspec_tune.draft.class_costs import ClassCosts
from selfspec_tune.draft.costs import ContextCosts, CostModel, StepCosts
from selfspec_tune.draft.rounds import PLAIN_ROUND
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.errors import UsageError

SAME, INT4 = Precision.SAME, Precision.INT4
VERIFY = (1.0, 1.1, 1.2, 1.5)
# A draft step of nothing skipped takes 0.2 + 2 · 0.1 + 2 · 0.3 = 1.0.
COSTS = CostModel(VERIFY, {SAME: 0.2}, {SAME: 0.1}, {SAME: 0.3}, num_layers=2)
LONG = replace(
    COSTS,
    length=100,
    contexts=(
        ContextCosts(100, VERIFY, 0.1),
        ContextCosts(300, (1.2, 1.3, 1.6, 1.9), 0.2),
        ContextCosts(700, (1.6, 1.7, 2.0, 2.3), 0.3),
    ),
)


def draft(attention: tuple[int, ...] = (), mlp: tuple[int, ...] = (), precision: Precision = SAME) -> Draft:
    return Draft(SkipSet(2, attention, mlp), precision=DraftPrecision.uniform(2, precision, precision))


def test_a_draft_step_costs_what_it_keeps() -> None:
    assert COSTS.decode == 1.0
    assert COSTS.draft_step(draft()) == pytest.approx(1.0)
    assert COSTS.draft_step(draft((1,), (0, 1))) == pytest.approx(0.3)
    assert COSTS.draft_step(draft((0, 1), (0, 1))) == pytest.approx(0.2)


def test_a_lower_precision_has_costs_of_its_own_or_none() -> None:
    mixed = replace(COSTS, heads={SAME: 0.2, INT4: 0.1}, attention={SAME: 0.1, INT4: 0.05}, mlp={SAME: 0.3, INT4: 0.1})
    assert mixed.draft_step(draft(mlp=(0,), precision=INT4)) == pytest.approx(0.1 + 2 * 0.05 + 0.1)
    with pytest.raises(ValueError, match="at precision int4; measured: same"):
        COSTS.draft_step(draft(precision=INT4))


def test_predicted_seconds_are_draft_steps_and_verifications() -> None:
    found = [Round(2, 2), Round(3, 0)]
    steps = COSTS.steps(draft((1,), (0, 1)))
    # 5 draft steps of 0.3; verifications of 3 and of 4 tokens
    assert steps.seconds(found) == pytest.approx(5 * 0.3 + 1.2 + 1.5)
    assert steps.speedup(found) == pytest.approx(4 * 1.0 / 4.2)


def test_verifications_past_the_last_timed_go_on_along_the_line() -> None:
    straight = StepCosts(1.0, 0.5, (1.0, 1.1, 1.2, 1.3))
    assert straight.verification(2) == 1.2
    assert straight.verification(7) == pytest.approx(1.7)
    assert StepCosts(1.0, 0.5, (1.0,)).verification(3) == 1.0
    assert StepCosts(1.0, 0.5, (1.0, 1.2, 1.1, 0.9)).verification(9) == 0.9  # noise is no gain


def test_a_round_without_drafts_costs_one_plain_step() -> None:
    assert COSTS.steps(draft()).speedup([Round(), Round()]) == pytest.approx(1.0)


def test_between_two_contexts_costs_lie_on_a_line() -> None:
    steps = LONG.steps(draft(), 200)
    assert steps.verify == pytest.approx((1.1, 1.2, 1.4, 1.7))
    assert steps.decode == steps.verify[0]
    assert steps.draft == pytest.approx(1.0 + 2 * 0.05)


@pytest.mark.parametrize(("context", "extra"), [(None, 0.0), (0, 0.0), (100, 0.0), (300, 0.2), (700, 0.4), (1100, 0.6)])
def test_only_the_kept_attentions_of_a_draft_feel_the_context(context: float | None, extra: float) -> None:
    assert LONG.draft_step(draft(), context) == pytest.approx(1.0 + extra)
    assert LONG.draft_step(draft((1,)), context) == pytest.approx(0.9 + extra / 2)
    assert LONG.draft_step(draft((0, 1)), context) == pytest.approx(0.8)


def test_without_contexts_the_costs_are_the_same_everywhere() -> None:
    assert COSTS.steps(draft(), 5000) == COSTS.steps(draft())


def test_a_context_longer_than_any_costs_no_less() -> None:
    falling = replace(LONG, contexts=(ContextCosts(100, VERIFY, 0.1), ContextCosts(200, VERIFY, 0.09)))
    assert falling.draft_step(draft(), 5000) == pytest.approx(1.0 - 2 * 0.01)


def test_a_smaller_vocabulary_changes_the_head_alone() -> None:
    measured = replace(COSTS, heads={SAME: 0.2, INT4: 0.1}, vocabularies={64: 0.2, 16: 0.05}, vocabulary=64)
    smaller = measured.with_vocabulary(16)
    assert smaller.heads == pytest.approx({SAME: 0.05, INT4: 0.025})
    assert smaller.with_vocabulary(64).heads == pytest.approx(measured.heads)
    assert smaller.mlp == measured.mlp
    assert measured.with_vocabulary(64) is measured
    with pytest.raises(ValueError, match="over 32 token ids was measured; measured: 64, 16"):
        measured.with_vocabulary(32)


def test_a_cost_model_survives_a_file() -> None:
    whole = replace(LONG, vocabularies={64: 0.2, 16: 0.05}, vocabulary=64, residual=0.01, cold=0.2, guess=0.1)
    assert CostModel.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    assert CostModel.from_dict(COSTS.to_dict()) == COSTS


EXPERTS = ClassCosts("experts", (1, 3), {SAME: 0.3, INT4: 0.1}, experts=4, each_expert={SAME: 0.05})
WINDOWS = ClassCosts("attention in a window", (2,), {SAME: 0.15}, seen=50, most_seen=50, by_seen=((20, 0.1), (50, 0.2)))
MIXED = replace(LONG, others=(EXPERTS, WINDOWS))


def test_sublayers_unlike_others_of_their_kind_have_costs_of_their_own() -> None:
    assert MIXED.draft_step(draft()) == pytest.approx(0.2 + 0.1 + 0.15 + 2 * 0.3)
    assert MIXED.draft_step(draft((1,), (0,))) == pytest.approx(0.2 + 0.1 + 0.3)
    assert MIXED.of_sublayer(SubLayerId.of(2), SAME) == 0.15
    assert set(MIXED.of(SubLayerId.of(3))) == {SAME, INT4}
    assert [name for name, _ in MIXED.by_class()] == ["attention", "experts", "attention in a window"]


def test_an_attention_in_a_window_costs_no_more_beyond_it() -> None:
    at = {
        context: MIXED.draft_step(draft(), context) - LONG.draft_step(draft((1,)), context) for context in (20, 35, 50)
    }
    assert at == pytest.approx({20: 0.05, 35: 0.1, 50: 0.15})
    for context in (51, 300, 10_000):
        more = MIXED.draft_step(draft(), context) - LONG.draft_step(draft((1,)), context)
        assert more == pytest.approx(0.15)


def test_fewer_experts_cost_less_where_that_was_measured() -> None:
    assert [EXPERTS.step(SAME, experts=k) for k in (None, 5, 4, 2, 1)] == pytest.approx([0.3, 0.3, 0.3, 0.2, 0.15])
    assert EXPERTS.step(INT4, experts=4) == 0.1
    with pytest.raises(ValueError, match="at precision int4; measured: same"):
        EXPERTS.step(INT4, experts=2)


def test_classes_survive_a_file_and_a_model_without_them_says_nothing_of_them() -> None:
    assert CostModel.from_dict(json.loads(json.dumps(MIXED.to_dict()))) == MIXED
    assert "others" not in LONG.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sublayers": [4]}, r"others name the sub-layers \[4, 2\]; expected each once, of 4"),
        ({"sublayers": [2]}, "expected each once"),
        ({"sublayers": [-1]}, "sublayers"),
        ({"name": 3}, "name is 3; expected a text"),
        ({"by_seen": [[5, 0.1], [5, 0.2]]}, "expected rising numbers of positions"),
        ({"seconds": {"same": -1.0}}, "seconds.same"),
        ({"experts": -1}, "experts"),
    ],
)
def test_classes_that_no_model_has_are_refused(change: dict[str, Any], message: str) -> None:
    value = MIXED.to_dict()
    value["others"][0] |= change
    with pytest.raises(UsageError, match=message):
        CostModel.from_dict(value)


def test_tokens_that_were_looked_up_cost_no_draft_step() -> None:
    found = [Round(2, 2, "model"), Round(3, 0, "ngram"), Round(0, 0, "plain")]
    assert COSTS.steps(draft((1,), (0, 1))).seconds(found) == pytest.approx(2 * 0.3 + 1.2 + 1.5 + 1.0)


def test_the_first_step_of_a_draft_and_tokens_tried_in_a_pass_cost_more() -> None:
    steps = replace(COSTS, cold=0.15, guess=0.25).steps(draft((1,), (0, 1)))
    found = [Round(4, 2, "model", 2, 3), Round(3, 0, "ngram", 0, 0), PLAIN_ROUND, Round(2, 1, "model", 1, 4)]
    # 3 draft passes of 0.3, two of them first ones, 7 tokens tried in them
    assert steps.seconds(found) == pytest.approx(3 * 0.3 + 2 * 0.15 + 7 * 0.075 + 1.7 + 1.5 + 1.0 + 1.2)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.1, (1.0,)),
        (1.0, -0.1, (1.0,)),
        (1.0, 0.1, ()),
        (1.0, 0.1, (0.0,)),
        (1.0, 0.1, (1.0,), -0.1),
        (1.0, 0.1, (1.0,), 0.1, -0.1),
    ],
)
def test_steps_that_take_no_time_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="expected positive seconds"):
        StepCosts(*values)

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from selfspec_tune.draft import LONGEST_SEARCHED, Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel, StepCosts
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerKind
from selfspec_tune.engine import Runner
from selfspec_tune.engine.cost_design import CostPlan, accepted_precisions, designed_skip_sets, elsewhere
from selfspec_tune.engine.cost_fit import measure_costs, measure_step_costs, time_contexts
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.timing import Step, TimingRounds, time_steps
from selfspec_tune.errors import UsageError
from selfspec_tune.measure.workload import Workload
from selfspec_tune.plans.attention import Reach, ReachKind
from selfspec_tune.plans.cost_class import CostClass
from selfspec_tune.requests import PromptOptions
from tests import kit
from tests.engine_kit import RUNNERS, ClockedRunner, load, prompt_tokens
from tests.families import FAMILIES

SAME, INT8, INT4 = Precision.SAME, Precision.INT8, Precision.INT4
EIGHT, FOUR = (DraftPrecision.uniform(6, low, low) for low in (INT8, INT4))
CONTEXT = prompt_tokens(50, vocabulary=32)
PLAN = CostPlan(context_length=4096, home=200, seconds=1e9, most_rounds=3)


def test_the_fit_recovers_what_every_part_costs() -> None:
    runner = ClockedRunner()
    costs = measure_costs(runner, CONTEXT, replace(PLAN, lengths=(100, 400)), clock=runner.clock)
    assert costs.residual < 1e-9
    assert costs.mlp[SAME] == pytest.approx(0.05)
    assert costs.attention[SAME] == pytest.approx(0.02 + 200 * 1e-5)
    assert costs.heads[SAME] == pytest.approx(0.01 + 32 * 0.001)
    assert [entry.length for entry in costs.contexts] == [100, 200, 400]
    assert [entry.attention for entry in costs.contexts] == pytest.approx([0.021, 0.022, 0.024])
    assert (costs.length, costs.vocabulary, costs.num_layers) == (200, 32, 6)


WINDOW = Reach(ReachKind.WINDOW, 151)
LOCAL = (0, 1, 3, 4)  # the layers of the kit's clocked six that look through a window
CLASSES = (
    CostClass("attention in a window of 151", SubLayerKind.ATTENTION, tuple(2 * layer for layer in LOCAL), WINDOW),
    CostClass("attention", SubLayerKind.ATTENTION, (4, 10)),
    CostClass("MLP", SubLayerKind.MLP, (1,)),
    CostClass("MLP 2", SubLayerKind.MLP, (3, 5, 7, 9, 11)),
)


class MixedRunner(ClockedRunner):
    """Attentions in windows beside full ones, and MLPs of which all but the first take three times as long."""

    def step_seconds(self, draft: Draft | None = None, length: int | None = None) -> float:
        draft, before = draft or Draft(SkipSet.empty(6)), self.length if length is None else length
        seconds = 0.042
        for sublayer, precision in draft.kept():
            seen = WINDOW.seen(before) if sublayer.layer in LOCAL else before
            part = 0.02 + 1e-5 * seen if sublayer.is_attention else 0.05 * (1 if sublayer.layer == 0 else 3)
            seconds += part / (1 if precision is SAME else 2)
        return seconds


def test_classes_of_sublayers_are_told_apart_at_every_context() -> None:
    runner = MixedRunner(low=0.5)
    plan = replace(PLAN, lengths=(100, 400), precisions=(EIGHT,), classes=CLASSES)
    costs = measure_costs(runner, CONTEXT, plan, clock=runner.clock)
    assert costs.residual < 1e-9
    assert [(name, table[SAME]) for name, table in costs.by_class()] == [
        ("attention", pytest.approx(0.022)),
        ("MLP", pytest.approx(0.05)),
        ("attention in a window of 151", pytest.approx(0.0215)),
        ("MLP 2", pytest.approx(0.15)),
    ]
    for skip_set in (SkipSet.empty(6), SkipSet(6, (1, 2), (0,)), SkipSet(6, (0, 3, 5), (1, 2, 3))):
        for precision in (DraftPrecision(), EIGHT):
            draft = Draft(skip_set, precision=precision)
            assert costs.draft_step(draft) == pytest.approx(runner.step_seconds(draft, 200))
        for length in (100, 250, 400, 5000):
            assert costs.draft_step(Draft(skip_set), length) == pytest.approx(
                runner.step_seconds(Draft(skip_set), length)
            )
    assert CostModel.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


class ExpertRunner(ClockedRunner):
    """A mixture in every layer but the first, of whose experts a token goes to four."""

    def step_seconds(self, draft: Draft | None = None, length: int | None = None) -> float:
        draft, before = draft or Draft(SkipSet.empty(6)), self.length if length is None else length
        seconds = 0.042
        for sublayer, precision in draft.kept():
            experts = 0.02 + 0.03 * min(draft.experts or 4, 4)
            part = 0.02 + 1e-5 * before if sublayer.is_attention else 0.05 if sublayer.layer == 0 else experts
            seconds += part / (1 if precision is SAME else 2)
        return seconds


def test_what_an_expert_costs_is_told_where_drafts_may_go_to_fewer() -> None:
    runner = ExpertRunner(low=0.5)
    kinds = {SubLayerKind.ATTENTION: range(0, 12, 2), SubLayerKind.MLP: (1,)}
    classes = [CostClass(kind.value, kind, tuple(indices)) for kind, indices in kinds.items()]
    classes.append(CostClass("experts", SubLayerKind.MLP, (3, 5, 7, 9, 11), experts=4))
    plan = replace(PLAN, precisions=(EIGHT,), classes=tuple(classes), experts=1)
    costs = measure_costs(runner, CONTEXT, plan, clock=runner.clock)
    (experts,) = costs.others
    assert experts.seconds == pytest.approx({SAME: 0.14, INT8: 0.07})
    assert experts.each_expert == pytest.approx({SAME: 0.03, INT8: 0.015})
    for number in (None, 1, 2, 3, 6):
        for precision in (DraftPrecision(), EIGHT):
            draft = Draft(SkipSet(6, (2,), (0, 3)), precision=precision, experts=number)
            assert costs.draft_step(draft) == pytest.approx(runner.step_seconds(draft, 200))
    whole = measure_costs(runner, CONTEXT, replace(plan, experts=None), clock=runner.clock)
    assert whole.draft_step(Draft(SkipSet.empty(6))) == pytest.approx(runner.step_seconds(length=200))
    with pytest.raises(ValueError, match="no costs were measured"):
        whole.draft_step(Draft(SkipSet.empty(6), experts=2))


def test_classes_take_few_more_steps() -> None:
    plain, mixed = designed_skip_sets(6), designed_skip_sets(6, CLASSES)
    assert set(plain) < set(mixed)
    assert len(mixed) == len(plain) + len(CLASSES)
    assert elsewhere([Draft(one) for one in mixed], replace(PLAN, classes=CLASSES))[:-1] == [
        Draft(one) for one in mixed[:4]
    ]


def test_every_verification_up_to_the_longest_draft_is_known() -> None:
    runner = ClockedRunner()
    costs = measure_costs(runner, CONTEXT, PLAN, clock=runner.clock)
    step = runner.step_seconds(length=200)
    assert costs.verify == pytest.approx([step * (1 + 0.1 * k) for k in range(LONGEST_SEARCHED + 1)])


def test_passes_over_several_tokens_are_over_such_as_follow_each_other() -> None:
    runner = ClockedRunner()  # experts are read by what a token goes to: one token again and again reads too few
    measure_costs(runner, CONTEXT, PLAN, clock=runner.clock)
    assert {len(tokens) for tokens in runner.verified} == {*range(2, 18), 21, 25}
    assert all(tokens == CONTEXT[-len(tokens) :] for tokens in [*runner.verified, *runner.draft_passes])
    short = ClockedRunner()
    measure_step_costs(short, CONTEXT[:2], Draft(SkipSet.empty(6)), context_length=99, clock=short.clock)
    assert (CONTEXT[:2] * 9)[1:] in short.verified


def test_any_draft_is_predicted_at_any_context() -> None:
    runner = ClockedRunner()
    costs = measure_costs(runner, CONTEXT, replace(PLAN, lengths=(100, 400)), clock=runner.clock)
    for skip_set in (SkipSet.empty(6), SkipSet(6, (1, 4), (0,)), SkipSet(6, (), (0, 1, 2, 3, 4, 5))):
        for length in (100, 250, 400, 1000):
            draft = Draft(skip_set)
            assert costs.steps(draft, length).draft == pytest.approx(runner.step_seconds(draft, length))
            assert costs.steps(draft, length).decode == pytest.approx(runner.step_seconds(length=length))


def test_a_machine_that_is_slower_at_another_context_does_not_bend_the_costs() -> None:
    class Drifting(ClockedRunner):
        def step_seconds(self, draft: Draft | None = None, length: int | None = None) -> float:
            at = self.length if length is None else length
            return super().step_seconds(draft, length) * (1.5 if at < 150 else 1.0)

    runner, steady = Drifting(), ClockedRunner()
    costs = measure_costs(runner, CONTEXT, replace(PLAN, lengths=(100, 400)), clock=runner.clock)
    assert costs.residual < 1e-9
    assert [entry.verify[0] for entry in costs.contexts] == pytest.approx(
        [steady.step_seconds(length=length) for length in (100, 200, 400)]
    )


def test_every_vocabulary_has_a_head_of_its_own() -> None:
    runner = ClockedRunner()
    costs = measure_costs(runner, CONTEXT, replace(PLAN, vocabularies=(None, 16, 8)), clock=runner.clock)
    assert costs.vocabularies == pytest.approx({32: 0.042, 16: 0.026, 8: 0.018})
    assert costs.with_vocabulary(8).heads[SAME] == pytest.approx(0.018)
    assert costs.mlp[SAME] == pytest.approx(0.05)


def test_low_precisions_are_timed_where_the_runner_takes_them() -> None:
    runner = ClockedRunner(low=0.5)
    costs = measure_costs(runner, CONTEXT, replace(PLAN, precisions=(EIGHT,)), clock=runner.clock)
    assert costs.mlp == pytest.approx({SAME: 0.05, INT8: 0.025})
    assert costs.attention == pytest.approx({SAME: 0.022, INT8: 0.012})
    assert costs.heads == pytest.approx({SAME: 0.042, INT8: 0.026})
    refusing = ClockedRunner()
    costs = measure_costs(refusing, CONTEXT, replace(PLAN, precisions=(EIGHT, FOUR)), clock=refusing.clock)
    assert set(costs.mlp) == {SAME}


def test_a_mixed_precision_tells_its_parts_apart() -> None:
    runner = ClockedRunner(low=0.5)
    mixed = DraftPrecision((INT8, SAME, *(SAME, INT8) * 5), INT8)
    costs = measure_costs(runner, CONTEXT, replace(PLAN, precisions=(mixed,)), clock=runner.clock)
    assert costs.mlp == pytest.approx({SAME: 0.05, INT8: 0.025})
    assert costs.attention == pytest.approx({SAME: 0.022, INT8: 0.012})
    draft = Draft(SkipSet(6, (2,), (3, 4)), precision=mixed)
    assert costs.draft_step(draft) == pytest.approx(runner.step_seconds(draft, 200))


def test_the_residual_tells_of_an_engine_that_is_not_the_sum_of_its_parts() -> None:
    runner = ClockedRunner()
    whole = runner.step_seconds

    def bent(draft: Draft | None = None, length: int | None = None) -> float:
        seconds = whole(draft, length)
        return seconds if seconds > 0.3 else 0.3  # a floor that no skipping gets below

    runner.step_seconds = bent  # type: ignore[method-assign]
    assert measure_costs(runner, CONTEXT, PLAN, clock=runner.clock).residual > 0.02


def test_contexts_that_would_take_too_long_are_left_out_unless_insisted_on() -> None:
    hurried = replace(PLAN, lengths=(100, 3000))
    runner = ClockedRunner()
    timings = time_contexts(runner, CONTEXT, replace(hurried, seconds=140.0), clock=runner.clock)
    assert [timing.length for timing in timings] == [200, 100]
    assert runner.longest == 200
    runner = ClockedRunner()
    timings = time_contexts(runner, CONTEXT, replace(hurried, seconds=140.0, insist=True), clock=runner.clock)
    assert [timing.length for timing in timings] == [200, 100, 3000]


def test_little_time_means_few_rounds_but_never_less_than_two() -> None:
    runner = ClockedRunner()
    (timing,) = time_contexts(runner, CONTEXT, replace(PLAN, seconds=0.0), clock=runner.clock)
    assert {len(seconds) for seconds in timing.verify.values()} == {2}


def test_a_context_as_long_as_the_models_leaves_room_for_the_steps() -> None:
    runner = ClockedRunner()
    plan = CostPlan(context_length=128, home=128, lengths=(64, 8192), seconds=1e9, most_rounds=2)
    timings = time_contexts(runner, CONTEXT, plan, clock=runner.clock)
    assert [timing.length for timing in timings] == [102, 64]


def test_steps_of_others_are_timed_in_the_same_rounds() -> None:
    runner = ClockedRunner()

    def wait() -> None:
        runner.now += 0.5

    plan = replace(PLAN, others={"reading": Step(wait)}, lengths=(300,))
    for timing in time_contexts(runner, CONTEXT, plan, clock=runner.clock):
        assert timing.others["reading"] == pytest.approx([0.5] * 3)


def test_quick_step_costs_are_the_drafts() -> None:
    runner = ClockedRunner()
    draft = Draft(SkipSet(6, (1, 2), (3,)), vocabulary=16)
    costs = measure_step_costs(runner, CONTEXT, draft, clock=runner.clock)
    assert costs.draft == pytest.approx(runner.step_seconds(draft, 50))
    assert costs.verify == pytest.approx(
        [runner.step_seconds(length=50) * (1 + 0.1 * k) for k in range(LONGEST_SEARCHED + 1)]
    )
    assert costs.decode == costs.verify[0]
    assert runner.length == 50


def test_steps_are_timed_as_the_rounds_of_a_generation_have_them() -> None:
    runner = ClockedRunner(cold=0.2, guess=0.05)
    plain = runner.step_seconds(length=200)
    costs = measure_costs(runner, CONTEXT, PLAN, clock=runner.clock)
    assert (costs.cold, costs.guess) == pytest.approx((0.2, 0.05))
    assert costs.verify == pytest.approx(
        [plain, *(0.2 + plain * (1 + 0.1 * k) for k in range(1, LONGEST_SEARCHED + 1))]
    )
    assert costs.draft_step(Draft(SkipSet.empty(6))) == pytest.approx(plain)
    draft = Draft(SkipSet(6, (1, 2), (3,)))
    step = runner.step_seconds(draft, 50)
    quick = measure_step_costs(runner, CONTEXT, draft, clock=runner.clock)
    assert (quick.draft, quick.cold, quick.guess) == pytest.approx((step, 0.2, 0.05 * step))
    assert quick.decode == pytest.approx(runner.step_seconds(length=50))
    other = measure_step_costs(runner, CONTEXT, draft, StepCosts(1.0, 0.5, (1.0, 1.1)), clock=runner.clock)
    plain = runner.step_seconds(length=50)
    assert (other.draft, other.cold, other.guess) == pytest.approx((step / plain, 0.2 / plain, 0.05 * step / plain))


def test_a_context_with_little_room_is_timed_without_wide_draft_passes() -> None:
    runner = ClockedRunner(guess=0.05)
    plan = CostPlan(context_length=5, home=128, seconds=1e9, most_rounds=2)
    assert measure_costs(runner, CONTEXT, plan, clock=runner.clock).guess == pytest.approx(0.05)
    plan = replace(plan, context_length=3)
    assert measure_costs(runner, CONTEXT, plan, clock=runner.clock).guess == 0.0


def test_of_another_draft_only_its_own_step_is_timed() -> None:
    runner = ClockedRunner()
    known = StepCosts(2.0, 0.7, (2.0, 2.5))
    draft = Draft(SkipSet(6, (1, 2), (3,)), vocabulary=16)
    costs = measure_step_costs(runner, CONTEXT, draft, known, clock=runner.clock)
    to_decode = runner.step_seconds(draft, 50) / runner.step_seconds(length=50)
    assert (costs.decode, costs.verify) == (2.0, (2.0, 2.5))
    assert costs.draft == pytest.approx(2.0 * to_decode)
    lookup = Draft(SkipSet.empty(6), sources=(NgramLookup(),), model_drafts=False)
    assert measure_step_costs(runner, CONTEXT, lookup, known, clock=runner.clock) == StepCosts(2.0, 0.0, (2.0, 2.5))


def test_a_lookup_that_drafts_alone_has_no_draft_step() -> None:
    runner = ClockedRunner()
    draft = Draft(SkipSet.empty(6), sources=(NgramLookup(),), model_drafts=False)
    assert measure_step_costs(runner, CONTEXT, draft, clock=runner.clock).draft == 0.0


def test_a_very_short_context_bounds_what_is_verified() -> None:
    runner = ClockedRunner()
    costs = measure_step_costs(runner, CONTEXT, Draft(SkipSet.empty(6)), context_length=8, clock=runner.clock)
    assert len(costs.verify) == 6
    assert runner.length == 1


def test_the_first_round_warms_up_and_every_other_one_runs_backwards() -> None:
    runner = ClockedRunner()
    prefill(runner, [3, 4])
    order: list[str] = []
    steps = {name: Step(lambda name=name: order.append(name)) for name in "abc"}
    seconds = time_steps(runner, steps, TimingRounds(most=2), runner.clock)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("num_layers", [1, 2, 4, 30, 80])
def test_the_skip_sets_tell_attention_mlp_and_head_apart(num_layers: int) -> None:
    sets = designed_skip_sets(num_layers)
    assert len(set(sets)) == len(sets)
    kept = np.array([(1, num_layers - len(s.attention), num_layers - len(s.mlp)) for s in sets])
    assert np.linalg.matrix_rank(kept) == 3
    # at other contexts four are timed, and the MLP is known
    assert np.linalg.matrix_rank(kept[:4, :2]) >= min(num_layers, 2)


@pytest.mark.parametrize("name", RUNNERS)
def test_real_runners_are_measured_through_their_interface(name: str, tiny_llama_dir: Path) -> None:
    runner: Runner = RUNNERS[name](load(tiny_llama_dir))
    plan = CostPlan(context_length=1024, home=20, lengths=(40,), vocabularies=(64, None), seconds=0.1)
    costs = measure_costs(runner, prompt_tokens(12), plan)
    assert len(costs.verify) == LONGEST_SEARCHED + 1
    assert min(costs.verify) > 0
    assert set(costs.vocabularies) == {64, 128}
    assert costs.draft_step(Draft(SkipSet.empty(4))) > 0


def test_every_class_of_a_real_model_has_its_price(tmp_path: Path) -> None:
    config = FAMILIES["qwen2_moe"].config  # windows and full attentions, MLPs and mixtures
    loaded = load(kit.save_random(AutoConfig.for_model(**config), tmp_path))
    classes = Workload(loaded, runner := RUNNERS["fast"](loaded), PromptOptions()).cost_classes
    plan = CostPlan(context_length=8, home=1, classes=classes, experts=1, seconds=0.1)
    costs = measure_costs(runner, prompt_tokens(30), plan)
    assert [other.name for other in costs.others] == [one.name for one in classes if not one.is_plain]
    assert {name for name, _ in costs.by_class()} == {one.name for one in classes}
    assert len(classes) == 4
    for draft in (Draft(SkipSet.empty(4)), Draft(SkipSet(4, (0,), (1,)), experts=1)):
        assert costs.draft_step(draft, 500) > 0


def test_a_runner_without_copies_refuses_other_precisions(tiny_llama_dir: Path) -> None:
    runner: Runner = RUNNERS["reference"](load(tiny_llama_dir))
    with pytest.raises(UsageError, match="cannot draft at int4"):
        runner.set_draft(Draft(SkipSet.empty(4), precision=DraftPrecision.uniform(4, INT4)))
    assert accepted_precisions(runner, [DraftPrecision.uniform(4, INT8), DraftPrecision.uniform(4, INT4)]) == []


def test_what_the_policy_asks_for_is_part_of_a_draft_step(tiny_llama_dir: Path) -> None:
    runner: Runner = RUNNERS["fast"](load(tiny_llama_dir))
    fixed = Draft(SkipSet.empty(4), DraftPolicy(PolicyKind.FIXED))
    assert measure_step_costs(runner, prompt_tokens(12), fixed, context_length=1024, repeats=1).draft > 0

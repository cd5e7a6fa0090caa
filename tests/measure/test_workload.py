"""The step costs that a workload measures for cost-aware policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from selfspec_tune.draft import LONGEST_SEARCHED, Draft, DraftPolicy, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel, StepCosts
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, choose_runner
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.measure import workload as module
from selfspec_tune.measure.arms import autoregressive_arm, self_speculative_arm
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.prompts import Prompt
from selfspec_tune.requests import PromptOptions
from tests.engine_kit import load

FIRST, SECOND = Draft(SkipSet.empty(4)), Draft(SkipSet(4, (1,)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Draft]]:
    """The context length and the draft of every measurement."""
    seen: list[tuple[int, Draft]] = []
    measure = module.measure_step_costs

    def counted(runner: Any, context: Sequence[int], draft: Draft, *known: Any, **options: Any) -> StepCosts:
        costs = measure(runner, context, draft, *known, repeats=1, **options)
        seen.append((runner.length, draft))
        return costs

    monkeypatch.setattr(module, "measure_step_costs", counted)
    return seen


@pytest.fixture
def workload(tiny_llama_dir: Path) -> Workload:
    loaded = load(tiny_llama_dir)
    return Workload(loaded, choose_runner(loaded), PromptOptions())


def test_the_steps_of_a_draft_are_measured_once_whatever_its_policy(
    workload: Workload, measured: list[tuple[int, Draft]]
) -> None:
    costs = workload.step_costs(FIRST)
    assert workload.step_costs(Draft(SkipSet.empty(4), DraftPolicy(PolicyKind.COST_AWARE, 9))) is costs
    assert len(costs.verify) == 1 + LONGEST_SEARCHED
    assert workload.step_costs(SECOND).verify == costs.verify  # the full model's, for every draft
    assert measured == [(128, FIRST), (128, SECOND)]


def test_a_known_cost_model_takes_the_place_of_measurements(
    workload: Workload, measured: list[tuple[int, Draft]]
) -> None:
    costs = CostModel((4.0, 5.0), {Precision.SAME: 1.0}, {Precision.SAME: 0.1}, {Precision.SAME: 0.2}, 4)
    known = replace(workload, costs=costs)
    steps = known.step_costs(SECOND)
    assert (steps.decode, steps.verify) == (4.0, (4.0, 5.0))
    assert steps.draft == pytest.approx(1.0 + 0.3 + 0.8)
    assert measured == []


def test_they_are_measured_after_as_much_context_as_is_asked_for_and_fits(
    workload: Workload, measured: list[tuple[int, Draft]]
) -> None:
    workload.step_costs(FIRST)
    longer = replace(workload, cost_context=500)
    assert longer.runner is workload.runner
    longer.step_costs(FIRST)
    replace(workload, cost_context=5000).step_costs(FIRST)
    lengths = [length for length, _ in measured]
    assert lengths[:2] == [128, 500]
    assert 900 < lengths[2] < workload.loaded.context_length == 1024


def test_a_cost_aware_arm_decodes_with_measured_costs_and_others_measure_none(
    workload: Workload, measured: list[tuple[int, Draft]]
) -> None:
    item = WorkItem("a", Prompt("a", "code", "text"), (5, 9, 20, 14), Limits(20))
    plain = autoregressive_arm(workload).decode(item)
    for kind in PolicyKind:
        draft = Draft(SkipSet(4, (2,)), DraftPolicy(kind), sources=(NgramLookup(),))
        assert self_speculative_arm(workload, draft).decode(item).tokens == plain.tokens
        assert len(measured) == (kind is PolicyKind.COST_AWARE)


def test_a_workload_that_is_opened_again_knows_nothing_of_the_earlier_use(workload: Workload) -> None:
    assert isinstance(workload.runner, FastRunner)
    workload.runner.extra_memory_bytes = 1
    workload.costs = CostModel((4.0, 5.0), {Precision.SAME: 1.0}, {Precision.SAME: 0.1}, {Precision.SAME: 0.2}, 4)
    again = workload.reopened(PromptOptions(max_new_tokens=7))
    assert (again.loaded, again.runner) == (workload.loaded, workload.runner)
    assert again.limits().max_new_tokens == 7
    assert again.costs is None
    assert again.runner.extra_memory_bytes is None  # type: ignore[attr-defined]


def test_steps_are_timed_on_text_however_much_is_wanted(workload: Workload) -> None:
    text = workload.typical_tokens(20_000)
    assert len(text) == 20_000
    assert workload.typical_tokens(64) == text[:64]
    assert len(set(text[:64])) > 10
    assert max(text) < workload.runner.vocabulary_size
    workload.loaded = replace(workload.loaded, tokenizer=cast(Any, lambda text: {"input_ids": []}))
    assert workload.typical_tokens(3) == [0, 0, 0]

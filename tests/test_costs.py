"""Step costs: as values, and as measured on an engine whose clock is scripted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from selfspec_tune.costs import StepCosts
from selfspec_tune.draft import Draft, DraftPolicy, NgramLookup, PolicyKind
from selfspec_tune.skip_set import SkipSet


def test_verifications_are_read_and_past_the_last_lie_on_its_line() -> None:
    costs = StepCosts(1.0, 0.2, (1.0, 1.1, 1.3))
    assert [costs.verification(k) for k in range(5)] == pytest.approx([1.0, 1.1, 1.3, 1.5, 1.7])
    assert StepCosts(1.0, 0.2, (1.0,)).verification(9) == 1.0
    assert StepCosts(1.0, 0.2, (1.0, 1.4, 1.2)).verification(4) == 1.2  # noise does not make more tokens cheaper


@pytest.mark.parametrize("values", [(0.0, 0.1, (1.0,)), (1.0, -0.1, (1.0,)), (1.0, 0.1, ()), (1.0, 0.1, (0.0,))])
def test_steps_that_take_no_time_are_refused(values: tuple[float, float, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="expected positive seconds"):
        StepCosts(*values)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless the engine moves it."""
    now = [0.0]
    monkeypatch.setattr("selfspec_tune.engine.costs.perf_counter", lambda: now[0])
    return now


def test_every_step_is_timed_after_the_context_and_the_rest_interpolated(clock: list[float]) -> None:
    from selfspec_tune.engine.costs import measure_step_costs
    from tests.engine_kit import TableRunner, chain

    class Timed(TableRunner):
        def decode(self, token: int):  # type: ignore[no-untyped-def]
            clock[0] += 1.0
            return super().decode(token)

        def draft_step(self, token: int):  # type: ignore[no-untyped-def]
            clock[0] += 0.25
            return super().draft_step(token)

        def verify(self, tokens: Sequence[int]):  # type: ignore[no-untyped-def]
            assert len(self.tokens) == 3
            clock[0] += 0.1  # and one a token, by decode
            return super().verify(tokens)

    runner = Timed(chain(8, 1.0))
    costs = measure_step_costs(runner, [1, 2, 3], Draft(SkipSet.empty(1)), repeats=2)
    assert runner.tokens == [1, 2, 3]
    assert costs.decode == costs.verify[0] == pytest.approx(1.0)
    assert costs.draft == pytest.approx(0.25)
    assert costs.verify[1:] == pytest.approx([k + 1.1 for k in range(1, 17)])
    alone = Draft(SkipSet.empty(1), ngram=NgramLookup(), model_drafts=False)
    assert measure_step_costs(runner, [1, 2, 3], alone, repeats=1).draft == 0.0


def test_a_workload_measures_the_steps_of_a_draft_once_whatever_its_policy(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfspec_tune.engine import choose_runner
    from selfspec_tune.measure import workload as module
    from selfspec_tune.requests import PromptOptions
    from tests.engine_kit import load

    measured: list[Draft] = []
    measure = module.measure_step_costs

    def counted(runner: object, context: Sequence[int], draft: Draft) -> StepCosts:
        measured.append(draft)
        return measure(runner, context, draft, repeats=1)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "measure_step_costs", counted)
    loaded = load(tiny_llama_dir)
    work = module.Workload(loaded, choose_runner(loaded), PromptOptions())
    first, second = Draft(SkipSet.empty(4)), Draft(SkipSet(4, (1,)))
    costs = work.step_costs(first)
    assert work.step_costs(Draft(SkipSet.empty(4), DraftPolicy(PolicyKind.COST_AWARE, 9))) is costs
    assert len(costs.verify) == 17
    work.step_costs(second)
    assert measured == [first, second]


def test_a_cost_aware_arm_decodes_with_measured_costs_and_others_measure_none(tiny_llama_dir: Path) -> None:
    from selfspec_tune.engine import Limits, choose_runner
    from selfspec_tune.measure.arms import autoregressive_arm, self_speculative_arm
    from selfspec_tune.measure.workload import WorkItem, Workload
    from selfspec_tune.prompts import Prompt
    from selfspec_tune.requests import PromptOptions
    from tests.engine_kit import load

    loaded = load(tiny_llama_dir)
    work = Workload(loaded, choose_runner(loaded), PromptOptions())
    item = WorkItem("a", Prompt("a", "code", "text"), (5, 9, 20, 14), Limits(20))
    plain = autoregressive_arm(work).decode(item)
    for kind in PolicyKind:
        draft = Draft(SkipSet(4, (2,)), DraftPolicy(kind), ngram=NgramLookup())
        assert self_speculative_arm(work, draft).decode(item).tokens == plain.tokens
        assert len(work._step_costs) == (kind is PolicyKind.COST_AWARE)

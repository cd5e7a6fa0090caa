from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from selfspec_tune import files
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import StorageError
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.reporting import Candidate
from selfspec_tune.requests import StrategyName
from selfspec_tune.search import strategies as strategies_module
from selfspec_tune.search.space import Encoding, SearchSpace
from selfspec_tune.search.stages import scoring as scoring_module
from selfspec_tune.search.stages.optuna_study import (
    LOSSY,
    STOPPED_EARLY,
    MeasuredStudy,
    TrialSettings,
    is_feasible,
    repair_journal,
)
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.scoring import PairedScoring
from selfspec_tune.search.strategies import STRATEGIES
from tests.search_kit import ScriptedEngine, hurry, make_item, read_rows, steady

SPACE = SearchSpace.of_skips(Draft(SkipSet.empty(4)))
ITEMS = [make_item(number) for number in range(8)]
A, B, C = SkipSet(4, (1,), (2,)), SkipSet(4, (2, 3)), SkipSet(4, (), (0, 1, 3))
POLICY = DraftPolicy(PolicyKind.THRESHOLD, 4, 0.6)


class Killed(BaseException):
    """Ends a trial as ``kill -9`` does: nothing after it runs."""


@pytest.fixture(autouse=True)
def loud_optuna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Optuna warns of would reach users: it fails a test here. Nothing waits for the disk."""
    hurry(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def settings(encoding: Encoding, seed: int = 0) -> TrialSettings:
    return TrialSettings(encoding, seed, STRATEGIES[StrategyName.STAGED].sampler)


def open_study(folder: Path, *, kind: PolicyKind = PolicyKind.THRESHOLD, seed: int = 0) -> MeasuredStudy:
    return MeasuredStudy(folder, settings(Encoding(SPACE, (kind,)), seed))


def predictions(*sets: SkipSet, policy: DraftPolicy = POLICY) -> list[Prediction]:
    return [Prediction(Draft(skip_set, policy), 1.5 - 0.1 * i, f"origin {i}") for i, skip_set in enumerate(sets)]


def run_trial(study: MeasuredStudy, items: Sequence[WorkItem] = ITEMS) -> Candidate:
    nobody: Any = None
    scoring = PairedScoring(nobody, items, nobody, study.folder / "trials.jsonl")
    with study.trial():
        trial, draft = study.ask()
        return study.tell(trial, scoring.score(trial, draft))


def skip_sets(trials: Sequence[FrozenTrial], study: MeasuredStudy) -> list[SkipSet]:
    return [study.draft_of(trial.params).skip_set for trial in trials]


def journal(folder: Path) -> optuna.Study:
    """The study as anybody else reads it from its journal."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name="selfspec-tune", storage=storage)


def alive(measured: int) -> None:
    """Before a block that nothing interrupts."""


def die_in_block(number: int) -> Any:
    def before_block(measured: int) -> None:
        if measured == number:
            raise Killed

    return before_block


def test_enqueued_candidates_run_first_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.2)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B, C))
    study.enqueue(predictions(A, B, C))
    found = [run_trial(study) for _ in range(4)]
    assert [candidate.draft.skip_set for candidate in found[:3]] == [A, B, C]
    assert [candidate.origin for candidate in found] == ["origin 0", "origin 1", "origin 2", "tpe"]
    assert [candidate.number for candidate in found] == [0, 1, 2, 3]
    assert study.draft_of(study.ended[0].params) == Draft(A, POLICY)
    assert study.ended[1].user_attrs["predicted"] == pytest.approx(1.4)


def test_a_resumed_study_does_not_enqueue_again_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.2)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    resumed = open_study(tmp_path)
    resumed.enqueue(predictions(A, B))
    assert run_trial(resumed).draft.skip_set == B
    assert [run_trial(resumed).origin for _ in range(2)] == ["tpe", "tpe"]


def test_a_trials_value_is_the_ratio_of_total_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"set/0": (10.0, 2.0, "identical")}
    ScriptedEngine(lambda draft, item: pairs.get(item.id, (1.0, 0.5, "identical"))).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A))
    candidate = run_trial(study, ITEMS[:3])
    # 10 + 1 + 1 seconds against 5 + 2 + 2
    assert study.ended[0].value == pytest.approx(12 / 9)
    assert candidate.speedup is not None
    assert candidate.speedup.value == pytest.approx(12 / 9)
    assert candidate.acceptance_rate == pytest.approx(3 / 4)
    assert not candidate.stopped_early


def test_every_pair_is_on_file_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count_rows(measured: int) -> None:
        file = tmp_path / "trials.jsonl"
        seen.append(len(read_rows(file)) if file.exists() else 0)

    ScriptedEngine(steady(1.1), before_block=count_rows).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A))
    run_trial(study, ITEMS[:4])
    assert seen == [0, 1, 2, 3]
    rows = read_rows(tmp_path / "trials.jsonl")
    assert [row["trial"] for row in rows] == [0] * 4
    assert [row["prompt_id"] for row in rows] == [item.id for item in ITEMS[:4]]


def test_who_goes_first_on_an_item_alternates_over_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(steady(1.1))
    places: list[int] = []

    def measure(workload: Any, baseline: Any, candidates: Any, block: Any, check: Any) -> Any:
        places.append(block.position)
        return engine(workload, baseline, candidates, block, check)

    monkeypatch.setattr(scoring_module, "measure_block", measure)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study, ITEMS[:3])
    run_trial(study, ITEMS[:3])
    assert places == [0, 1, 2, 1, 2, 3]


def hopeless_but_flattered(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
    """A is better than all others on every item, but its last item is long and slow: its total ratio is lower."""
    is_long = item.id == "set/7"
    speedup = (0.5 if is_long else 2.0) if draft.skip_set == A else 1.5
    return (100.0 if is_long else 1.0), speedup, "identical"


def test_a_stopped_trial_is_never_the_best_even_with_a_higher_partial_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(hopeless_but_flattered).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    stopped = run_trial(study)
    assert stopped.stopped_early
    assert len(engine.measured) == 8 + 5
    best, other = study.ended
    assert best.value is not None
    assert other.value is not None
    assert other.value == pytest.approx(1.5)
    assert other.value > best.value
    assert skip_sets(study.ranking, study) == [A]
    assert journal(tmp_path).best_trial.number == 0


def test_a_stopped_trial_is_complete_and_infeasible_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(hopeless_but_flattered).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    run_trial(study)
    whole, stopped = journal(tmp_path).trials
    assert {whole.state, stopped.state} == {TrialState.COMPLETE}
    assert whole.constraints == {STOPPED_EARLY: -1.0, LOSSY: -1.0}
    assert stopped.constraints[STOPPED_EARLY] > 0
    assert len(stopped.intermediate_values) == 5
    assert is_feasible(whole)
    assert not is_feasible(stopped)


def test_no_trial_is_stopped_before_five_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(lambda draft, item: (1.0, 3.0 if draft.skip_set == A else 0.1, "identical"))
    engine.install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study, ITEMS[:4])
    assert not run_trial(study, ITEMS[:4]).stopped_early
    assert len(engine.measured) == 8


def test_a_trial_is_not_called_stopped_on_its_last_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lambda draft, item: (1.0, 3.0 if draft.skip_set == A else 0.1, "identical")).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study, ITEMS[:5])
    assert not run_trial(study, ITEMS[:5]).stopped_early
    assert len(study.ranking) == 2


def lossy_b(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
    return (1.0, 9.0, "mismatch") if draft.skip_set == B else (1.0, 1.1, "identical")


def test_a_lossy_trial_is_never_the_best_and_states_no_speedup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lossy_b).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    lossy = run_trial(study)
    assert lossy.speedup is None
    assert skip_sets(study.ranking, study) == [A]
    trial = journal(tmp_path).trials[1]
    assert trial.state is TrialState.COMPLETE
    assert trial.constraints == {STOPPED_EARLY: -1.0, LOSSY: 1.0}
    assert journal(tmp_path).best_trial.number == 0


def test_one_mismatch_among_many_pairs_makes_a_trial_lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lambda draft, item: (1.0, 2.0, "mismatch" if item.id == "set/3" else "numerical_tie")).install(
        monkeypatch
    )
    study = open_study(tmp_path)
    study.enqueue(predictions(A))
    run_trial(study)
    assert study.ranking == []
    assert len(study.ended) == 1


def test_numerical_ties_and_sampled_runs_are_feasible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {A: "numerical_tie", B: "sampled"}
    ScriptedEngine(lambda draft, item: (1.0, 1.2, verdicts[draft.skip_set])).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    assert [run_trial(study).speedup is not None for _ in range(2)] == [True, True]
    assert len(study.ranking) == 2


def test_the_first_trial_may_be_lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lossy_b).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(B, A, C))
    found = [run_trial(study) for _ in range(3)]
    assert found[0].speedup is None
    assert set(skip_sets(study.ranking, study)) == {A, C}


def mixed(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
    """Fast, slow and lossy drafts, by how much they skip."""
    skipped = draft.skip_set.num_skipped
    return 1.0, 0.4 + 0.2 * skipped, "mismatch" if skipped > 6 else "identical"


@pytest.mark.parametrize("kind", list(PolicyKind))
def test_tpe_learns_from_stopped_and_lossy_trials_without_tripping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: PolicyKind
) -> None:
    ScriptedEngine(mixed).install(monkeypatch)
    study = open_study(tmp_path, kind=kind)
    threshold = 0.0 if kind is PolicyKind.FIXED else 0.6  # a cost-aware policy does not use its own
    everything = SkipSet(4, (0, 1, 2, 3), (0, 1, 2, 3))
    study.enqueue(predictions(SkipSet(4, (1, 2, 3), (1, 2)), A, everything, policy=DraftPolicy(kind, 4, threshold)))
    for _ in range(14):
        run_trial(study)
    trials = study.ended
    assert len(trials) == 14
    assert {"stopped early" for trial in trials if trial.user_attrs[STOPPED_EARLY]} == {"stopped early"}
    assert {"lossy" for trial in trials if trial.user_attrs[LOSSY]} == {"lossy"}
    drafts = [study.draft_of(trial.params) for trial in trials]
    assert {draft.policy.kind for draft in drafts} == {kind}
    assert all(
        ("exit_threshold" in trial.params) == (kind in (PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE)) for trial in trials
    )
    values = [trial.value or 0.0 for trial in study.ranking]
    assert values == sorted(values, reverse=True)


def test_a_study_without_candidates_draws_its_first_trial_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.0)).install(monkeypatch)
    study = open_study(tmp_path)
    assert [run_trial(study).origin for _ in range(2)] == ["tpe", "tpe"]


def test_every_draft_of_a_study_has_its_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(steady(1.0)).install(monkeypatch)
    study = MeasuredStudy(tmp_path, settings(Encoding(SPACE.with_vocabulary(77), (PolicyKind.FIXED,))))
    run_trial(study, ITEMS[:1])
    assert engine.drafts[0].vocabulary == 77


# Resuming


def test_ended_trials_survive_in_a_new_study_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lambda draft, item: (1.0, 1.0 + 0.1 * draft.skip_set.num_skipped, "identical")).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B, C))
    for _ in range(5):
        run_trial(study)
    resumed = open_study(tmp_path)
    assert [(t.number, t.value, t.params) for t in resumed.ended] == [
        (t.number, t.value, t.params) for t in study.ended
    ]
    assert [trial.number for trial in resumed.ranking] == [trial.number for trial in study.ranking]


def test_a_trial_that_a_dead_process_left_is_failed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(steady(1.3)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    engine.before_block = die_in_block(len(engine.measured) + 3)
    with pytest.raises(Killed):
        run_trial(study)
    assert [trial.state for trial in journal(tmp_path).trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    engine.before_block = alive
    resumed = open_study(tmp_path)
    resumed.enqueue(predictions(A, B))
    states = [trial.state for trial in journal(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    again = run_trial(resumed)
    assert (again.draft.skip_set, again.origin) == (B, "origin 1")
    assert resumed.draft_of(resumed.ended[-1].params).policy == POLICY
    assert len(resumed.ended) == 2


def test_a_drawn_trial_that_died_is_tried_again_with_its_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(steady(1.3)).install(monkeypatch)
    study = open_study(tmp_path)
    run_trial(study, ITEMS[:2])
    engine.before_block = die_in_block(3)
    with pytest.raises(Killed):
        run_trial(study, ITEMS[:2])
    engine.before_block = alive
    lost = journal(tmp_path).trials[1].params
    resumed = open_study(tmp_path)
    run_trial(resumed, ITEMS[:2])
    assert resumed.ended[-1].params == lost


def test_a_study_that_died_several_times_tries_the_same_draft_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(steady(1.3)).install(monkeypatch)
    open_study(tmp_path).enqueue(predictions(A))
    for _ in range(3):
        engine.before_block = die_in_block(len(engine.measured) + 1)
        with pytest.raises(Killed):
            run_trial(open_study(tmp_path))
    engine.before_block = alive
    resumed = open_study(tmp_path)
    assert run_trial(resumed).draft.skip_set == A
    assert [trial.state.name for trial in journal(tmp_path).trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_a_candidate_taken_from_the_queue_by_a_process_that_died_at_once_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.3)).install(monkeypatch)
    open_study(tmp_path).enqueue(predictions(A))
    journal(tmp_path).ask()
    resumed = open_study(tmp_path)
    resumed.enqueue(predictions(A))
    assert run_trial(resumed).draft.skip_set == A


def test_a_candidate_whose_process_died_while_its_parameters_were_written_is_tried_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.3)).install(monkeypatch)
    open_study(tmp_path).enqueue(predictions(A))
    half = {name: optuna.distributions.CategoricalDistribution(("same", "skip")) for name in ("attn_1", "mlp_0")}
    journal(tmp_path).ask(half)
    resumed = open_study(tmp_path)
    resumed.enqueue(predictions(A))
    run_trial(resumed)
    assert resumed.draft_of(resumed.ended[-1].params) == Draft(A, POLICY)


def test_a_draw_that_was_cut_off_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.3)).install(monkeypatch)
    open_study(tmp_path)
    journal(tmp_path).ask({"attn_1": optuna.distributions.CategoricalDistribution(("same", "skip"))})
    resumed = open_study(tmp_path)
    assert [trial.state for trial in journal(tmp_path).trials] == [TrialState.FAIL]
    assert run_trial(resumed, ITEMS[:1]).number == 1


def test_a_torn_journal_tail_and_a_stale_lock_are_repaired_without_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.3)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    log = tmp_path / "journal.log"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"op_code":5,"worker_id":"dead","trial_')
    (tmp_path / "journal.log.lock").touch()
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    resumed = open_study(tmp_path)
    assert len(resumed.ended) == 1
    assert run_trial(resumed).draft.skip_set == B
    assert not waits
    assert log.read_bytes().startswith(whole)
    assert not (tmp_path / "journal.log.lock").exists()


def test_repairing_leaves_a_whole_journal_alone(tmp_path: Path) -> None:
    log = tmp_path / "journal.log"
    repair_journal(log)
    assert not log.exists()
    for content, kept in ((b"{}\n{}\n", b"{}\n{}\n"), (b"{}\n{", b"{}\n"), (b"{", b""), (b"", b"")):
        log.write_bytes(content)
        repair_journal(log)
        assert log.read_bytes() == kept


def test_a_resumed_study_draws_from_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.0)).install(monkeypatch)
    seeds: list[int] = []
    real = strategies_module.TPESampler

    def sampler(*, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return real(seed=seed, **options)

    monkeypatch.setattr(strategies_module, "TPESampler", sampler)
    for _ in range(4):
        run_trial(open_study(tmp_path, seed=11), ITEMS[:1])
    assert seeds[0] == 11
    assert len(set(seeds)) == 4


def test_a_resumed_study_goes_on_drawing_and_does_not_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.0)).install(monkeypatch)
    for _ in range(6):
        run_trial(open_study(tmp_path), ITEMS[:1])
    drafts = [str(sorted(trial.params.items())) for trial in open_study(tmp_path).ended]
    # TPE may draw a good draft again; with the same seed each time all six would be alike.
    assert len(drafts) == 6
    assert len(set(drafts)) >= 4


def test_the_same_seed_draws_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.0)).install(monkeypatch)

    def draw(name: str, seed: int) -> list[SkipSet]:
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name, seed=seed)
        return [run_trial(study, ITEMS[:1]).draft.skip_set for _ in range(4)]

    assert draw("first", 1) == draw("again", 1) != draw("other", 2)


# A full disk


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_opening_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(StorageError, match=r"journal\.log: No space left on device"):
        open_study(tmp_path)


def test_a_full_disk_during_a_trial_is_a_storage_error_and_the_study_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(steady(1.2)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    with monkeypatch.context() as patch:
        engine.before_block = lambda measured: patch.setattr(JournalFileBackend, "append_logs", full)
        with pytest.raises(StorageError, match="No space left on device"):
            run_trial(study)
    engine.before_block = alive
    resumed = open_study(tmp_path)
    assert len(resumed.ended) == 1
    assert run_trial(resumed).draft.skip_set == B


def test_a_full_disk_for_the_raw_runs_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.2)).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A))
    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(StorageError, match=r"trials\.jsonl: No space left on device"):
        run_trial(study)
    assert study.ended == []


def test_a_full_disk_while_enqueuing_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(tmp_path)
    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(StorageError):
        study.enqueue(predictions(A))


# What is shown, and what the user fixed


def test_a_draft_is_lossy_once_a_trial_of_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lossy_b).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    run_trial(study)
    assert study.is_lossy(Draft(B, POLICY))
    assert not study.is_lossy(Draft(A, POLICY))
    assert not study.is_lossy(Draft(C, POLICY))


def test_an_earlier_trial_is_shown_with_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(hopeless_but_flattered).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(A, B))
    run_trial(study)
    run_trial(study)
    shown = [study.as_candidate(trial) for trial in study.ended]
    assert [candidate.draft.skip_set for candidate in shown] == [A, B]
    assert [candidate.stopped_early for candidate in shown] == [False, True]
    assert [candidate.origin for candidate in shown] == ["origin 0", "origin 1"]
    assert [candidate.speedup.value for candidate in shown if candidate.speedup] == [
        trial.value for trial in study.ended
    ]


def test_an_earlier_lossy_trial_is_shown_without_a_speedup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(lossy_b).install(monkeypatch)
    study = open_study(tmp_path)
    study.enqueue(predictions(B))
    run_trial(study)
    shown = study.as_candidate(study.ended[0])
    assert shown.speedup is None
    assert not shown.stopped_early


def test_a_draft_length_and_threshold_off_the_grid_can_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.2)).install(monkeypatch)
    policy = DraftPolicy(PolicyKind.THRESHOLD, 7, 0.25)
    study = MeasuredStudy(tmp_path, settings(Encoding(SPACE, (policy.kind,), (7,), (0.25,))))
    study.enqueue(predictions(A, policy=policy))
    for _ in range(3):
        run_trial(study, ITEMS[:1])
    drafts = [study.draft_of(trial.params) for trial in study.ended]
    assert drafts[0] == Draft(A, policy)
    assert {draft.policy for draft in drafts} == {policy}


def test_policies_of_two_kinds_are_a_choice_and_come_back_as_they_were() -> None:
    prior = AcceptancePrior(0.9, (0.5,) * 10)
    encoding = Encoding(SPACE, (PolicyKind.COST_AWARE, PolicyKind.THRESHOLD), (4, 16), (0.4, 0.8), prior)
    assert encoding.choices["policy"] == ("cost-aware", "threshold")
    drafts = [
        Draft(A, DraftPolicy(PolicyKind.COST_AWARE, 16, prior=prior)),  # its own lengths, up to the greatest
        Draft(A, DraftPolicy(PolicyKind.THRESHOLD, 4, 0.8)),  # and no prior
    ]
    assert [encoding.draft(encoding.parameters(draft)) for draft in drafts] == drafts
    adaptive = encoding.parameters(Draft(A, DraftPolicy(PolicyKind.ADAPTIVE, 4, 0.4)))
    assert adaptive["policy"] == "cost-aware"
    assert "policy" not in Encoding(SPACE, (PolicyKind.FIXED,)).choices


@pytest.mark.parametrize("as_reals", [False, True])
def test_numbers_of_experts_are_a_choice_and_come_back_as_they_were(as_reals: bool) -> None:
    space = replace(SPACE, experts=(None, 3, 2, 1))
    encoding = Encoding(space, (PolicyKind.FIXED,), (4,), as_reals=as_reals)
    drafts = [Draft(A, DraftPolicy(PolicyKind.FIXED, 4, 0.0), experts=experts) for experts in space.experts]
    assert [encoding.draft(encoding.parameters(draft)) for draft in drafts] == drafts
    assert "experts" not in Encoding(SPACE, (PolicyKind.FIXED,)).choices

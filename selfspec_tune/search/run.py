"""A search from beginning to end.

load ─► fit to the time ─► calibrate ─► importance ─► costs ─► proxy ─► trials ─► finalists ─► test ─► skip.json

What a stage takes more than was planned is taken from the next ones. Every stage keeps what it
found in the study's folder as it comes; the same command resumes after any interruption.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspec_tune import arguments
from selfspec_tune.checks import checked_arguments, path_or_none, text_or_none
from selfspec_tune.cpu import cpu_quota
from selfspec_tune.draft import Draft
from selfspec_tune.errors import BudgetError
from selfspec_tune.intervals import Interval
from selfspec_tune.measure.arms import SELF_SPECULATIVE
from selfspec_tune.measure.lossless import LosslessCheck, make_check
from selfspec_tune.measure.pairs import judged
from selfspec_tune.measure.run_log import measurement_provenance
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Reporter, SilentReporter
from selfspec_tune.requests import EXACT_MATCH, Objective, SearchRequest
from selfspec_tune.results import BenchResult, SkipConfig
from selfspec_tune.search import budget
from selfspec_tune.search.conclusion import (
    agreement,
    bounded,
    plain_drift,
    predicted_from_counts,
    promise_kept,
    provisional_config,
    skip_config,
)
from selfspec_tune.search.fitting import fit_search
from selfspec_tune.search.session import Session, Sessions
from selfspec_tune.search.setup import open_setup, tell_starts
from selfspec_tune.search.stages.calibration import Answer, trial_items
from selfspec_tune.search.stages.finalists import choose_finalists, measure_winner, select_winner
from selfspec_tune.search.stages.optuna_study import STOPPED_EARLY, MeasuredStudy
from selfspec_tune.search.stages.proxy import predict_standalone
from selfspec_tune.search.stages.ranker import rank
from selfspec_tune.search.stages.ranking import Ranking
from selfspec_tune.search.stages.trials import open_study, run_trials
from selfspec_tune.search.starts import check_starts
from selfspec_tune.search.study import StudyFolder


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search leaves: the file a user keeps, the test measurement, and where both are."""

    skip_config: SkipConfig
    bench: BenchResult | None
    out: Path
    interrupted: bool = False

    def __fspath__(self) -> str:
        """The study's folder, so that whatever takes a study's path takes this."""
        return str(self.out)


def run_search(request: SearchRequest, reporter: Reporter, workload: Workload | None = None) -> SearchOutcome:
    """Search, or resume the search in ``request.out``.

    A finished search with the same budget is read, not repeated; a larger budget goes on
    from there. Ctrl-C during the trials writes the best draft so far, without a score. ``workload``:
    one that is open already, whose model and runner then serve.
    """
    check_starts(request)
    folder = StudyFolder(request.out)
    with folder.locked(is_read=folder.is_finished(request)):
        folder.check_is_whole()
        clock = budget.Clock(request.timeout_seconds, folder.spent_seconds)
        setting = open_setup(request, reporter, workload)
        config = setting.config()
        folder.check(config)
        if folder.is_finished(request):
            reporter.notice(f"{folder.path} is finished; raise `trials` or `timeout` to go on, or give another `out`.")
            return SearchOutcome(SkipConfig.load(folder.skip), BenchResult.load(folder.bench), folder.path)
        folder.check_goes_on(config)
        config.save(folder.config)
        tell_starts(setting.starts, reporter)
        sessions = Sessions(folder.sessions)
        here = measurement_provenance(setting.workload, None, cpu_quota=cpu_quota())
        sessions.begin(here, () if sessions.number else folder.earlier_provenances(), reporter)
        folder.note_finished(None)
        fit = fit_search(setting, folder, clock, reporter)
        outcome = _search(Session(fit.setting, fit.schedule, fit.estimates, folder, sessions, clock, reporter))
        if not outcome.interrupted:
            folder.note_finished(request)
        return outcome


def _search(session: Session) -> SearchOutcome:
    """All stages; what an earlier run of the command found is read."""
    setting = session.setting
    count = len(setting.calibration)
    first = f", the first {budget.TRIAL_ITEMS} now" if count > budget.TRIAL_ITEMS else ""
    session.reporter.stage("calibrate", f"the model's own answers to {count} prompts{first}")
    answers = session.answers(setting.calibration[: budget.TRIAL_ITEMS])
    session.tick()
    if not trial_items(answers, length=budget.TRIAL_TOKENS, most=1, seed=session.seed):
        raise BudgetError(
            "The model's answers to the calibration prompts are too short to measure on "
            "(8 tokens or fewer each). Use prompts with longer answers."
        )
    session = _with_time_for_sound(session, answers)
    check = make_check(session.workload, setting.calibration)
    ranking = rank(session)
    session = session.with_costs(ranking.costs)
    session.tick()
    study = open_study(session, ranking)
    try:
        run_trials(session, study, answers, ranking, check)
        winner, promised = select_winner(session, check, study, ranking)
        bench = measure_winner(session, check, study, winner, promised)
    except KeyboardInterrupt:
        return _interrupted(session, study, ranking, check)
    config = _conclude(session, winner, bench, ranking, study, promised)
    session.tick()
    return SearchOutcome(config, bench, session.folder.path)


def _with_time_for_sound(session: Session, answers: Sequence[Answer]) -> Session:
    """Keep time for more test prompts where answers degenerate, for the verdict goes by the others."""
    ended = [answer.tokens[-1] in answer.item.limits.eos_token_ids for answer in answers]
    found = [judged(session.workload, a.tokens, ended=end) for a, end in zip(answers, ended, strict=True)]
    num_sound = sum(not degenerate for degenerate in found)
    schedule = session.schedule.for_sound(num_sound / len(answers), len(session.setting.test))
    if schedule != session.schedule:
        session.reporter.notice(
            f"{len(answers) - num_sound} of {len(answers)} answers degenerate: time is kept for {schedule.num_test} "
            f"test prompts, not {session.schedule.num_test}"
        )
    return replace(session, schedule=schedule)


def _interrupted(session: Session, study: MeasuredStudy, ranking: Ranking, check: LosslessCheck) -> SearchOutcome:
    """Keep the best so far for a user who stops here; the same command goes on."""
    session.tick()
    if not study.ended and not ranking.candidates:
        raise KeyboardInterrupt  # nothing to keep
    objective = session.request.draft.objective
    best = choose_finalists(study, ranking, session.setting.space.base, objective)[0]
    provenance = session.sessions.provenance(study.sessions)
    provenance |= {"numeric_floor": check.floor, "prompts": session.setting.prompt_record()}
    provenance |= {"search": _search_record(session, study)}
    config = provisional_config(session.workload.loaded, best, provenance, objective)
    if not session.folder.has_scored_skip_set():
        config.save(session.folder.skip)
    return SearchOutcome(config, None, session.folder.path, interrupted=True)


def _conclude(
    session: Session,
    winner: Draft,
    bench: BenchResult,
    ranking: Ranking,
    study: MeasuredStudy,
    promised: Interval | None,
) -> SkipConfig:
    """Write skip.json, and say how far prediction, selection and test agree."""
    method = next(method for method in bench.methods if method.name == SELF_SPECULATIVE)
    runs = [run for run in bench.runs if run.method == method.id]
    from_counts = predicted_from_counts(runs, winner, ranking.costs)
    if from_counts is not None:
        session.reporter.notice(agreement(method, from_counts, plain_drift(runs, winner, ranking.costs)))
    if promised is not None and method.end_to_end_speedup is not None:
        session.reporter.notice(promise_kept(promised, method.end_to_end_speedup))
    predicted = {prediction.draft: prediction.speedup for prediction in ranking.candidates}
    record = {
        **_search_record(session, study),
        "predicted_decode_speedup": predicted.get(winner),
        "decode_speedup_from_counts": from_counts,
        "selection_speedup": None if promised is None else bounded(promised),
    }
    objective = session.request.draft.objective
    config = skip_config(session.workload.loaded, winner, bench, record, objective)
    config.save(session.folder.skip)  # before what takes seconds, so that a Ctrl-C there loses nothing
    if objective is Objective.SHARED:
        record["standalone"] = _as_standalone(session, winner, ranking)
        config = skip_config(session.workload.loaded, winner, bench, record, objective)
        config.save(session.folder.skip)
    return config


def _as_standalone(session: Session, winner: Draft, ranking: Ranking) -> dict[str, Any] | None:
    """What the winner, which shares the model's cache, would be worth in a runtime where it cannot."""
    setting = session.setting
    few = setting.selection[: session.schedule.num_held_out]
    answers = session.answers(few or setting.calibration[: budget.TRIAL_ITEMS])
    return predict_standalone(session.workload, answers, winner.skip_set, ranking.costs, session.seed)


def _search_record(session: Session, study: MeasuredStudy) -> dict[str, Any]:
    starts = [start.to_dict() for start in session.setting.starts]
    is_sampled_alone = session.workload.alone is not None and not session.workload.sampler.greedy
    return {
        **({"start_from": starts} if starts else {}),
        "seconds": round(session.clock.elapsed, 1),
        **({"acceptance": EXACT_MATCH} if is_sampled_alone else {}),
        "trials": len(study.ended),
        "test_measurements": session.folder.num_tested(SELF_SPECULATIVE),
        "stopped_early": sum(bool(trial.user_attrs.get(STOPPED_EARLY)) for trial in study.ended),
    }


@checked_arguments
def search(
    model: str | os.PathLike[str] | None = None,
    *,
    prompts: str | os.PathLike[str] | None = None,
    timeout: str | float | None = None,
    trials: int | None = None,
    out: str | os.PathLike[str] | None = None,
    start_from: Sequence[str | os.PathLike[str]] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> SearchOutcome:
    """Find the sub-layers that a model may skip while it drafts for itself, and measure what that is worth.

    Args:
        model: alias, hub id, directory or GGUF file; None: the model that comes with the tool.
        prompts: builtin (None), humaneval, a file or folder, or a preset such as gsm8k.
        timeout: such as ``10m``, or seconds; 45 minutes where neither it nor ``trials`` is given.
        trials: most drafts to measure.
        out: the study's folder, where the same call resumes; None: ``studies/<model>-<prompts>``.
        start_from: skip sets to try first, as files in any dialect, folders of studies or texts.
        reporter: is told of what happens; None: nobody is.
        options: any other field of `ModelOptions`, `PromptOptions`, `DraftOptions`, and ``strategy``.

    Raises:
        UsageError: an option is not known or means nothing, or ``out`` holds something else.
        SelfSpecError: the model cannot be had or cannot run here, or a result cannot be written.
    """
    request = arguments.search_request(
        model=text_or_none(model),
        prompts=text_or_none(prompts),
        timeout=timeout,
        trials=trials,
        out=path_or_none("out", out),
        start_from=None if start_from is None else tuple(os.fspath(start) for start in start_from),
        **options,
    )
    return run_search(request, reporter or SilentReporter())

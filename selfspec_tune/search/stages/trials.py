"""The trials of a search: candidates really decode, the predicted ones first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.measure.arms import autoregressive_arm, contender_arm
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.workload import WorkItem, shortened
from selfspec_tune.reporting import Candidate, Progress
from selfspec_tune.search import budget
from selfspec_tune.search.session import Session
from selfspec_tune.search.space import Encoding
from selfspec_tune.search.stages.calibration import Answer, spread_windows, trial_items
from selfspec_tune.search.stages.optuna_study import MeasuredStudy, TrialSettings
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.ranking import Ranking
from selfspec_tune.search.stages.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS
from selfspec_tune.search.stages.scoring import MatchScoring, PairedScoring, Scoring, TimedScoring
from selfspec_tune.search.starts import START, to_measure
from selfspec_tune.search.strategies import ScoredBy


def open_study(session: Session, ranking: Ranking) -> MeasuredStudy:
    """The study in the session's folder, begun or resumed, with the ranking's candidates in its queue."""
    draft, setting, strategy = session.request.draft, session.setting, session.strategy
    kinds = draft.policy_kinds
    priors = [candidate.draft.policy.prior for candidate in ranking.candidates]
    encoding = Encoding(
        setting.space.with_vocabulary(ranking.vocabulary).costed_by(ranking.costs),
        kinds,
        _lengths(kinds) if draft.max_draft_tokens is None else (draft.max_draft_tokens,),
        EXIT_THRESHOLDS if draft.exit_threshold is None else (draft.exit_threshold,),
        next((prior for prior in priors if prior is not None), None),
        as_reals=strategy.as_reals,
    )
    origin = "tpe" if strategy.has_proxy else session.request.strategy.value
    settings = TrialSettings(encoding, session.seed, strategy.sampler, origin, session.sessions.number)
    study = MeasuredStudy(session.folder.path, settings)
    study.enqueue(ranking.queue)
    if strategy.has_proxy and not session.predicts:
        # By the first policy: unless told otherwise the one that loses next to nothing where drafting does not pay.
        base = replace(encoding.space.base, policy=DraftPolicy(kinds[0]))
        study.enqueue([Prediction(base, 0.0, "base")])
    if not strategy.has_proxy:
        starts = to_measure(setting.starts)
        study.enqueue([Prediction(encoding.space.projected(draft), 0.0, START) for draft in starts])
    return study


def run_trials(
    session: Session,
    study: MeasuredStudy,
    answers: Sequence[Answer],
    ranking: Ranking,
    check: LosslessCheck,
) -> None:
    """Trials until the budget ends; ``answers``: those that they decode again."""
    reporter, clock, request = session.reporter, session.clock, session.request
    most = budget.max_trials(request.trials, request.timeout_seconds)
    num_windows = session.schedule.num_windows
    items = trial_items(answers, length=budget.TRIAL_TOKENS, most=num_windows, seed=session.seed + 1)
    reserved, one = session.estimates.reserved(session.schedule), session.estimates.trial(session.schedule)
    scoring = _scoring(session, answers, items, ranking, check)
    reporter.stage("trials", scoring.about)
    for ended in study.ended:
        reporter.trial(study.as_candidate(ended))
    for arm in (autoregressive_arm(session.workload), contender_arm(session.workload, first_draft(session, ranking))):
        arm.decode(items[0])  # a warm-up: the first trial is timed like every other
    drafts = session.strategy.starts(session.setting.space, session.seed)
    apart: list[Candidate] = []
    while len(study.ended) < most and _may_try(study, clock.left - reserved - one):
        number, turn = len(study.ended), session.strategy.turn
        is_samplers = turn is not None and number % turn == 0
        if not is_samplers:
            _enqueue_next(study, drafts, request.strategy.value)
        left = clock.left - reserved
        reporter.progress(Progress(number, most, left if isfinite(left) else None))
        with study.trial():
            trial, draft = study.ask()
            candidate = study.tell(trial, scoring.score(trial, draft))
        reporter.trial(candidate)
        if candidate.disagreement:
            apart.append(candidate)
            if len(apart) == 1:
                reporter.notice(f"trial {candidate.number}: {candidate.disagreement}")
        _report_best(session, study, candidate)
        session.tick()
    if len(apart) > 1:
        reporter.notice(f"{len(apart)} trials were as far from their counts; the last, {apart[-1].disagreement}")


def _enqueue_next(study: MeasuredStudy, drafts: Iterator[Draft], origin: str) -> None:
    """Queue the next of ``drafts`` that no trial has had, unless one waits already."""
    while not study.has_queued:
        draft = next(drafts, None)
        if draft is None:
            return
        study.enqueue([Prediction(draft, 0.0, origin)])


def first_draft(session: Session, ranking: Ranking) -> Draft:
    """The best predicted draft; without predictions the one that skips nothing."""
    return ranking.candidates[0].draft if ranking.candidates else session.setting.space.base


def _scoring(
    session: Session, answers: Sequence[Answer], items: Sequence[WorkItem], ranking: Ranking, check: LosslessCheck
) -> Scoring:
    """How the strategy scores a trial."""
    workload = session.workload
    if session.strategy.scored_by is ScoredBy.TIME:
        whole = [shortened(answer.item, budget.SELF_SD_TOKENS) for answer in answers[: budget.TRIAL_ITEMS]]
        return TimedScoring(workload, whole)
    if session.strategy.scored_by is ScoredBy.MATCHES:
        spread = spread_windows(answers, length=budget.SWIFT_TOKENS, most=1, seed=session.seed)
        return MatchScoring(workload.scorer([window for _, window in spread]))
    return PairedScoring(workload, items, check, session.folder.trials, ranking.costs, session.sessions.number)


def _may_try(study: MeasuredStudy, spare: float) -> bool:
    """At least one trial is measured, whatever the time; then only what leaves ``spare`` seconds beside the rest."""
    return not study.ended or spare > 0


def _report_best(session: Session, study: MeasuredStudy, candidate: Candidate) -> None:
    ranking = study.ranking
    if ranking and ranking[0].number == candidate.number:
        session.note(study.draft_of(ranking[0].params), ranking[0].value or 0.0, "trials")
        session.reporter.best(candidate)


def _lengths(kinds: Sequence[PolicyKind]) -> tuple[int, ...]:
    """Draft lengths to search; a cost-aware policy finds its own up to the longest."""
    return (max(DRAFT_LENGTHS),) if set(kinds) == {PolicyKind.COST_AWARE} else DRAFT_LENGTHS

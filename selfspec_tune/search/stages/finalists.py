"""After the trials: the finalists on unread prompts, what is settled then, and the winner on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

from selfspec_tune.checks import number, whole
from selfspec_tune.draft import Draft
from selfspec_tune.errors import BudgetError, LosslessError, UsageError
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.intervals import FEWEST_TESTED, Interval
from selfspec_tune.measure.arms import contender_arm, reference_arms
from selfspec_tune.measure.bench_result import bench_result
from selfspec_tune.measure.contest import Contest, TimeLimit, on_common_prompts, run_together
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.measure.workload import shortened
from selfspec_tune.requests import Objective
from selfspec_tune.results import BenchResult
from selfspec_tune.results.metrics import advantage, summarise
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search import budget
from selfspec_tune.search.budget import FEWEST_SELECTION, tested
from selfspec_tune.search.conclusion import bounded
from selfspec_tune.search.session import Session
from selfspec_tune.search.stages.optuna_study import MeasuredStudy
from selfspec_tune.search.stages.ranking import Ranking, may_win
from selfspec_tune.search.study import budget_of
from selfspec_tune.search.study_files import draft_record, read_draft

_SCHEMA, _VERSION = "selfspec-tune/choice", 1
_MOST_PROMPTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """Which drafts compete on how many selection prompts.

    ``winner``: the fastest of them and ``promised`` its speedup there; None before they competed, and ``promised`` also
    where there was a single one.
    """

    finalists: tuple[Draft, ...]
    num_selection: int
    winner: Draft | None = None
    promised: Interval | None = None


def write_choice(file: Path, budget: dict[str, Any], choice: Choice) -> None:
    """Keep a choice that was made under ``budget``."""
    write_json_atomic(
        file,
        {
            "schema": _SCHEMA,
            "version": _VERSION,
            "budget": budget,
            "finalists": [draft_record(draft) for draft in choice.finalists],
            "num_selection": choice.num_selection,
            "winner": None if choice.winner is None else draft_record(choice.winner),
            "promised": None if choice.promised is None else bounded(choice.promised),
        },
    )


def read_choice(file: Path, budget: dict[str, Any], num_layers: int) -> Choice | None:
    """The inverse of `write_choice`; None where none was made under ``budget``. Raises `FileFormatError`."""
    if not file.exists():
        return None
    value = read_versioned(file, _SCHEMA, _VERSION)
    with taken_apart(file):
        if value["budget"] != budget:
            return None
        winner, promised = value["winner"], value["promised"]
        choice = Choice(
            tuple(read_draft(record, num_layers) for record in value["finalists"]),
            whole("num_selection", value["num_selection"], 0, _MOST_PROMPTS),
            None if winner is None else read_draft(winner, num_layers),
            None if promised is None else _interval(promised),
        )
        if not choice.finalists:
            raise UsageError("finalists is empty; expected one draft or more.")
        return choice


def _interval(value: dict[str, float | None]) -> Interval:
    ends = {name: inf if end is None else float(number(name, end, 0.0)) for name, end in value.items()}
    return Interval(**ends)


def choose_finalists(
    study: MeasuredStudy, ranking: Ranking, base: Draft, objective: Objective, most: int = budget.NUM_FINALISTS
) -> list[Draft]:
    """The best measured and the best predicted drafts in turns: trials are noisy, predictions may be biased.

    ``base``, which skips nothing, is among two and more wherever it may gain: what is chosen on little text can lose to
    it.
    Raises `LosslessError` where every candidate gave other tokens than plain decoding, `BudgetError` where none skips.
    """
    measured = [study.draft_of(trial.params) for trial in study.ranking]
    predicted = [prediction.draft for prediction in ranking.candidates]
    drafts = [draft for turn in zip_longest(measured, predicted) for draft in turn if draft is not None]
    able = [draft for draft in drafts if may_win(draft, objective)]
    if drafts and not able:
        raise BudgetError(
            "No draft that skips anything was tried. Raise `trials` or `timeout`; the same command goes on."
        )
    drafts = [draft for draft in able if not study.is_lossy(draft)]
    finalists = list(dict.fromkeys(drafts))[:most]
    if finalists and most > 1 and not base.precision.is_same:
        whole = replace(base, policy=finalists[0].policy, vocabulary=finalists[0].vocabulary)
        if whole not in finalists and not study.is_lossy(whole):
            finalists[most - 1 :] = [whole]
    if not finalists:
        raise LosslessError(
            "Every candidate gave other tokens than plain decoding by more than a numerical tie: none can be "
            "trusted here. Run with `dtype` float32 or `runner` reference to tell why, and report it."
        )
    return finalists


def select_winner(
    session: Session, check: LosslessCheck, study: MeasuredStudy, ranking: Ranking
) -> tuple[Draft, Interval | None]:
    """As many finalists as there is time for, side by side on selection prompts; the fastest and its speedup.

    What was settled is kept: the same command goes on with the same finalists and tests the same winner, however much
    of its time is gone by then.
    """
    file, limits = session.folder.choice, budget_of(session.request)
    choice = read_choice(file, limits, session.workload.loaded.num_layers)
    if choice is None:
        choice = _settled(session, study, ranking)
        write_choice(file, limits, choice)
    if choice.winner is None:
        winner, promised = select(session, check, choice.finalists, choice.num_selection)
        choice = replace(choice, winner=winner, promised=promised)
        write_choice(file, limits, choice)
        return winner, promised
    return choice.winner, choice.promised


def _settled(session: Session, study: MeasuredStudy, ranking: Ranking) -> Choice:
    """Who competes; where there is no time for that, the best of the trials has won."""
    schedule, estimates = session.schedule, session.estimates
    # What came before may have taken longer than planned: then fewer compete, and the test keeps its time.
    fitting = estimates.finalists_within(schedule, session.clock.left - estimates.test(schedule))
    base, objective = session.setting.space.base, session.request.draft.objective
    finalists = choose_finalists(study, ranking, base, objective, fitting.num_finalists)
    choice = Choice(tuple(finalists), fitting.num_selection)
    if fitting.num_finalists == 1:
        if schedule.num_finalists > 1:
            session.reporter.notice("no time is left to compare finalists: the best of the trials is tested")
        return replace(choice, winner=finalists[0])
    if fitting != schedule:
        session.reporter.notice(
            f"what came before took longer than planned: {fitting.num_finalists} finalists on {fitting.num_selection} "
            f"prompts, not {schedule.num_finalists} on {schedule.num_selection}; the choice among them is less sure"
        )
    return choice


def select(
    session: Session, check: LosslessCheck, finalists: Sequence[Draft], num_items: int
) -> tuple[Draft, Interval | None]:
    """Measure the finalists side by side on selection prompts; the fastest and its speedup.

    One that skips something must be surely faster than the fastest that skips nothing: it was the best of hundreds on
    calibration text, so by luck alone it seems better than it is; the other was not picked out of any.
    """
    items = session.setting.selection[:num_items]
    session.reporter.stage("finalists", f"{len(finalists)} on {len(items)} selection prompts")
    arms = [contender_arm(session.workload, draft) for draft in finalists]
    short = [shortened(item, budget.SELECTION_TOKENS) for item in items]
    for_test = session.estimates.test(session.schedule)
    limit = TimeLimit(lambda: session.clock.left - for_test, FEWEST_SELECTION)
    log, number = session.folder.selection, session.sessions.number
    contest = Contest(session.workload, check, short, arms, log=log, session=number, limit=limit)
    (measured,) = run_together([contest], session.reporter)
    runs = on_common_prompts(measured)
    session.tick()
    runs_of = {arm.id: [run for run in runs if run.method == arm.id] for arm in arms}
    summaries = {name: summarise("runs", "runs", own) for name, own in runs_of.items()}
    found = {name: summary.end_to_end_speedup for name, summary in summaries.items()}
    speeds = {name: speedup.value if speedup else 0.0 for name, speedup in found.items()}  # 0: lossy, cannot win
    for arm in arms:
        assert arm.draft is not None
        plain = replace(arm.draft, policy=replace(arm.draft.policy, prior=None))  # a dozen numbers say little here
        share = summaries[arm.id].degenerate_share
        circling = f" ({share:.0%} of the answers degenerate)" if share else ""
        session.reporter.notice(f"finalist {speeds[arm.id]:.3f}× on selection{circling}: {plain.describe()}")
    best = max(arms, key=lambda arm: speeds[arm.id])
    unskipped = [arm for arm in arms if arm.draft is not None and arm.draft.skip_set.is_empty and speeds[arm.id]]
    if unskipped and best not in unskipped:
        other = max(unskipped, key=lambda arm: speeds[arm.id])
        gain = advantage(runs_of[best.id], runs_of[other.id])
        assert gain is not None
        if gain.low <= 1.0:
            session.reporter.notice(
                f"the fastest is {gain.value:.2f}× as fast as the finalist that skips nothing, and not surely faster: "
                "that one is taken, for it was not picked out of many"
            )
            best = other
    assert best.draft is not None
    session.note(best.draft, speeds[best.id], "selection")
    return best.draft, found[best.id]


def measure_winner(
    session: Session, check: LosslessCheck, study: MeasuredStudy, winner: Draft, promised: Interval | None
) -> BenchResult:
    """The winner alone on the test split, once, with an A-A run and model.generate on a few prompts.

    Where the time is up before the last prompt, the test ends after 8 or more of them.
    """
    items = session.setting.test
    planned = session.schedule.num_test
    which = f"{len(items)}" if planned == len(items) else f"about {planned} of {len(items)}"
    session.reporter.stage("test", f"the winner on {which} held-out prompts: {winner.reductions}")
    arm = contender_arm(session.workload, winner)
    contest = Contest(
        session.workload,
        check,
        items,
        [arm],
        reference_arms(session.workload, arm, uniform_and_random=False),
        num_reference_items=session.schedule.num_references,
        log=session.folder.test,
        session=session.sessions.number,
        limit=TimeLimit(lambda: session.clock.left - session.estimates.conclusion(), FEWEST_TESTED),
        plain_limit=PlainLimit(session.workload.loaded, session.workload.runner, session.reporter.notice),
    )
    (runs,) = run_together([contest], session.reporter)
    num_tested = len({run.prompt_hash for run in runs})
    if num_tested < len(items):
        session.reporter.notice(f"the time was up, so the test ended after {tested(num_tested, len(items))}")
    provenance = session.sessions.provenance(study.sessions, runs)
    provenance |= {"numeric_floor": check.floor, "prompts": session.setting.prompt_record()}
    provenance |= {"selection_speedup": promised.value if promised else None}
    result = bench_result(session.workload, contest.arms, runs, split="test", in_sample=False, provenance=provenance)
    result.save(session.folder.bench)
    return result

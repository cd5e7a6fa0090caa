"""Fits a search to its time limit: a few steps are timed, and by them each stage is told how much to do.

open ─► a few steps ─► costs ─► schedule ─► schedule.json, by which the same command resumes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from selfspec_tune.checks import number, whole
from selfspec_tune.engine.cost_fit import fill_cache
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.engine.timing import TimingRounds, decode_step, draft_step, time_steps
from selfspec_tune.errors import BudgetError
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.intervals import FEWEST_TESTED
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import Objective
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.budget import Clock, Schedule, max_trials, told, told_kept
from selfspec_tune.search.estimates import Costs, Estimates, Sizes
from selfspec_tune.search.setup import SearchSetup
from selfspec_tune.search.stages.calibration import texts_of
from selfspec_tune.search.stages.importance import num_steps
from selfspec_tune.search.strategies import strategy_for
from selfspec_tune.search.study import StudyFolder

_SCHEMA, _VERSION = "selfspec-tune/schedule", 1
_ROUNDS = TimingRounds(least=1, most=7, seconds=1.0)
_ROOM = 2  # positions after the context that a step and the one before it take
_ROWS = 48  # of text, in the pass that tells what a row costs
_QUICK_SECONDS = 1.0  # a pass that took longer is not run twice
_MOST = 1_000_000_000  # of anything that a kept schedule counts
_MAY_BE_NONE = frozenset({"num_held_out", "num_texts", "num_references"})
_SLOW_COPIES = 0.9  # of a plain step: a draft that takes longer gains nothing


@dataclass(frozen=True, slots=True)
class Timed:
    """What a few steps told: their costs, and how many plain steps one takes that drafts from low-precision copies."""

    costs: Costs
    copies_step: float | None = None

    @property
    def uses_copies(self) -> bool:
        """Whether such copies may pay at all."""
        return self.copies_step is None or self.copies_step < _SLOW_COPIES

    def least(self, other: Timed) -> Timed:
        """The smaller of each cost: what else the machine computes only ever adds to one."""
        pairs = zip(self.costs.to_dict().items(), other.costs.to_dict().values(), strict=True)
        copies = [step for step in (self.copies_step, other.copies_step) if step is not None]
        return Timed(Costs(**{name: min(one, two) for (name, one), two in pairs}), min(copies, default=None))


@dataclass(frozen=True, slots=True)
class Fit:
    """A setting cut to its schedule, and what the stages take."""

    setting: SearchSetup
    schedule: Schedule
    estimates: Estimates


def fit_search(setting: SearchSetup, folder: StudyFolder, clock: Clock, reporter: Reporter) -> Fit:
    """The fit that ``folder`` keeps, else a new one for it to keep; says what is given up for the time limit.

    With another budget than the kept one's only what is still to be measured is planned anew; what the earlier run
    fixed is said, and not blamed on the time. Raises `BudgetError` where not even the least fits.
    """
    timeout = setting.request.timeout_seconds
    kept = _kept(folder.schedule) if folder.schedule.exists() else None
    if kept is None and timeout is None:
        return unlimited(setting)
    timed = time_few_steps(setting) if kept is None else kept.timed
    is_old = kept is None and folder.calibration.exists()  # begun before searches had schedules, so by all of it
    if is_old:
        timed = replace(timed, copies_step=None)
    elif kept is None and not _fits(estimates_of(setting, timed), clock.elapsed_now):
        timed = timed.least(time_few_steps(setting))
    estimates = estimates_of(setting, timed)
    if kept is not None:
        earlier = kept.schedule
        for line in told_kept(estimates.full(), earlier):
            reporter.notice(line)
        estimates = estimates.going_on_from(earlier)
        is_same = kept.budget == (timeout, estimates.sizes.most_trials)
        schedule = earlier if is_same else _going_on(estimates, earlier)
    else:
        schedule = estimates.full() if is_old else fitting_schedule(estimates, clock.elapsed_now)
    _keep(folder, estimates, timed, schedule)
    return _told(setting, timed, estimates, schedule, reporter)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a study keeps of its fit: ``budget`` are its time limit and most trials."""

    timed: Timed
    schedule: Schedule
    budget: tuple[Any, Any]


def _kept(file: Path) -> _Kept:
    """Raises `FileFormatError`."""
    value = read_versioned(file, _SCHEMA, _VERSION)
    with taken_apart(file):
        costs = Costs(**{name: float(number(name, seconds, 0.0)) for name, seconds in value["costs"].items()})
        copies_step = value["copies_step"]
        if copies_step is not None:
            number("copies_step", copies_step, 0.0)
        kept = value["schedule"].items()
        schedule = Schedule(**{name: whole(name, count, name not in _MAY_BE_NONE, _MOST) for name, count in kept})
        return _Kept(Timed(costs, copies_step), schedule, (value["timeout_seconds"], value.get("most_trials")))


def new_fit(setting: SearchSetup, loading_seconds: float, reporter: Reporter) -> Fit:
    """The fit of a search that would begin now, after so many seconds of loading; says what is given up.

    Raises `BudgetError` where not even the least fits.
    """
    timed = time_few_steps(setting)
    if not _fits(estimates_of(setting, timed), loading_seconds):
        timed = timed.least(time_few_steps(setting))
    estimates = estimates_of(setting, timed)
    return _told(setting, timed, estimates, fitting_schedule(estimates, loading_seconds), reporter)


def unlimited(setting: SearchSetup) -> Fit:
    """Everything, where no time limit is: what it takes need not be known."""
    estimates = estimates_of(setting, Timed(Costs(0.0, 0.0)))
    schedule = estimates.full()
    return Fit(setting.fitted(schedule), schedule, estimates)


def fitting_schedule(estimates: Estimates, loading_seconds: float) -> Schedule:
    """What fits into the time limit after so many seconds of loading. Raises `BudgetError` where not even the least."""
    timeout = estimates.timeout_seconds
    if timeout is None:
        return estimates.full()
    schedule = estimates.fitting(timeout - loading_seconds)
    if schedule is None:
        step, least = 1000 * estimates.costs.decode_step, loading_seconds + estimates.least_seconds()
        raise BudgetError(
            f"`timeout` {timeout:.0f}s is too short: a token takes {step:.3g} ms here; one trial and a test on "
            f"{min(FEWEST_TESTED, estimates.sizes.test)} prompts, all of them shortened, take about "
            f"{ceil(least / 5) * 5} s. Raise it to that or more."
        )
    return schedule


def _fits(estimates: Estimates, loading_seconds: float) -> bool:
    """Whether the least does. Where not, steps are timed once more: a busy moment must not end a search."""
    timeout = estimates.timeout_seconds
    return timeout is None or estimates.fitting(timeout - loading_seconds) is not None


def _going_on(estimates: Estimates, earlier: Schedule) -> Schedule:
    """For a search that was begun by ``earlier`` with another budget; what it has read or measured stays."""
    timeout = estimates.timeout_seconds
    return estimates.full() if timeout is None else estimates.fitting(timeout) or earlier


def _told(setting: SearchSetup, timed: Timed, estimates: Estimates, schedule: Schedule, reporter: Reporter) -> Fit:
    """The fit, after saying what is given up, a notice each."""
    if not timed.uses_copies and timed.copies_step is not None:
        reporter.notice(
            f"low-precision copies are left out: drafting from them takes {timed.copies_step:.1f} times as long as a "
            "plain step here"
        )
    timeout = estimates.timeout_seconds
    lines = [] if timeout is None else list(told(estimates.full(), schedule))
    if lines:
        step = 1000 * timed.costs.decode_step
        reporter.notice(f"a token takes {step:.3g} ms here, so {timeout:g} s do not hold a whole search; less is done:")
    for line in lines:
        reporter.notice(line)
    return Fit(setting.fitted(schedule, uses_copies=timed.uses_copies), schedule, estimates)


def time_few_steps(setting: SearchSetup) -> Timed:
    """Time a prefill, plain steps, a draft from low-precision copies and a pass over a little text, in seconds."""
    workload, space = setting.workload, setting.space
    runner, limit = workload.runner, workload.loaded.context_length
    context = setting.calibration[0].tokens[: max(1, limit - _ROOM)]
    fill_cache(runner, context, len(context), _ROOM, perf_counter)  # a warm-up
    prefill = fill_cache(runner, context, len(context), _ROOM, perf_counter)
    steps = {"decode": decode_step(runner, context)}
    if space.is_joint:
        steps["draft"] = draft_step(runner, context, space.base.by_model)
    seconds = {name: median(values) for name, values in time_steps(runner, steps, _ROUNDS).items()}
    decode = seconds["decode"]
    timed = Timed(Costs(decode, prefill / len(context)), seconds["draft"] / decode if space.is_joint else None)
    if not strategy_for(setting.request.strategy).has_proxy:
        return timed
    row = _row_seconds(setting.fitted(estimates_of(setting, timed).full(), uses_copies=timed.uses_copies))
    return replace(timed, costs=replace(timed.costs, row=row))


def _row_seconds(setting: SearchSetup) -> float:
    """Seconds of a row of text that the base draft predicts."""
    limit, tokens = setting.workload.loaded.context_length, setting.calibration[0].tokens
    text = (tokens * (_ROWS + 2))[: min(max(len(tokens), _ROWS + 2), limit)]
    end = len(text) - 1
    window = Window(text, max(end - _ROWS, 0), end)
    scorer = setting.workload.scorer([window])

    def timed() -> float:
        begun = perf_counter()
        scorer.trace(setting.space.base)
        return perf_counter() - begun

    seconds = timed()
    if seconds < _QUICK_SECONDS:
        seconds = timed()
    return seconds / (end - window.start)


def estimates_of(setting: SearchSetup, timed: Timed) -> Estimates:
    """What the stages of ``setting``'s search take."""
    request = setting.request
    strategy, options = strategy_for(request.strategy), request.draft
    space = setting.space if timed.uses_copies else setting.space.without_copies()
    sizes = Sizes(
        len(setting.calibration),
        len(setting.selection),
        len(setting.test),
        prompt_tokens=setting.mean_prompt_tokens,
        max_new_tokens=request.prompts.max_new_tokens,
        most_trials=max_trials(request.trials, request.timeout_seconds),
        texts=texts_of(options.objective) if strategy.has_proxy else None,
        num_passes=num_steps(space),
        computes_prompts=options.objective is Objective.STANDALONE,
    )
    return Estimates(sizes, timed.costs, request.timeout_seconds)


def _keep(folder: StudyFolder, estimates: Estimates, timed: Timed, schedule: Schedule) -> None:
    record = {
        "schema": _SCHEMA,
        "version": _VERSION,
        "timeout_seconds": estimates.timeout_seconds,
        "most_trials": estimates.sizes.most_trials,
        "costs": timed.costs.to_dict(),
        "copies_step": timed.copies_step,
        "schedule": schedule.to_dict(),
    }
    write_json_atomic(folder.schedule, record)

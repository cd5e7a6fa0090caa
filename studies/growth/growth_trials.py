"""What a trial costs beside its measurement: Optuna's proposal and the journal, as trials and sub-layers grow."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from selfspec_tune.draft import Draft, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.files import append_jsonl, read_jsonl
from selfspec_tune.requests import StrategyName
from selfspec_tune.search.space import Encoding, SearchSpace
from selfspec_tune.search.stages.optuna_study import MeasuredStudy, TrialSettings
from selfspec_tune.search.stages.scoring import TrialScore
from selfspec_tune.search.strategies import strategy_for

SAMPLERS = (StrategyName.TPE, StrategyName.GP, StrategyName.CMAES, StrategyName.RANDOM)
_CHOICES = (Precision.INT4, Precision.INT8, Precision.SAME)
_NOISE = 0.02  # of a score: about that of a measured trial


@dataclass(frozen=True, slots=True)
class Cell:
    """One sampler over one number of sub-layers."""

    sampler: StrategyName
    sublayers: int

    @property
    def key(self) -> dict[str, Any]:
        """What its records begin with."""
        return {"sampler": self.sampler.value, "sublayers": self.sublayers}


T = TypeVar("T")


class TimedSampler(BaseSampler):
    """Another sampler, and the seconds spent in it."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler
        self.seconds = 0.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._timed(self._sampler.infer_relative_search_space, study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._timed(self._sampler.sample_relative, study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._timed(self._sampler.sample_independent, study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._timed(self._sampler.before_trial, study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._timed(self._sampler.after_trial, study, trial, state, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def _timed(self, call: Callable[..., T], *arguments: Any) -> T:
        begun = perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += perf_counter() - begun


@dataclass(slots=True)
class FakeScoring:
    """Scores at once: each choice of each sub-layer is worth something, plus noise; ``seconds``: of its own."""

    sublayers: int
    seconds: float = 0.0
    _random: Random = field(default_factory=lambda: Random(0))
    _worth: list[dict[Precision | None, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._worth = [{choice: self._random.random() for choice in (None, *_CHOICES)} for _ in range(self.sublayers)]

    def score(self, trial: Trial, draft: Draft) -> TrialScore:
        begun = perf_counter()
        worth = sum(worth[choice] for worth, choice in zip(self._worth, draft.sublayers, strict=True))
        score = TrialScore(1 + worth / self.sublayers + self._random.gauss(0, _NOISE))
        self.seconds += perf_counter() - begun
        return score


def joint_space(num_layers: int) -> SearchSpace:
    """Every sub-layer skipped or at one of three precisions, as a search chooses by default."""
    precision = DraftPrecision.uniform(num_layers, Precision.INT4, Precision.INT4)
    base = Draft(SkipSet.empty(num_layers), precision=precision)
    return SearchSpace(base, (_CHOICES,) * (2 * num_layers), _CHOICES)


def run_trials(cells: Iterable[Cell], folder: Path, most_trials: int, most_seconds: float) -> list[dict[str, Any]]:
    """Every trial's record and each cell's end, those of earlier runs too; kept as they come.

    A cell ends after ``most_trials``, or with a trial that costs more than ``most_seconds``.
    """
    log = folder / "trials.jsonl"
    for cell in cells:
        ended = any(row.get("ended") for row in read_jsonl(log) if cell.key.items() <= row.items())
        if not ended:
            _run_cell(cell, folder, log, most_trials, most_seconds)
    return read_jsonl(log)


def _run_cell(cell: Cell, folder: Path, log: Path, most_trials: int, most_seconds: float) -> None:
    print(f"[trials] {cell.sampler} over {cell.sublayers} sub-layers", flush=True)
    journals = folder / "journals" / f"{cell.sampler}-{cell.sublayers}"
    journals.mkdir(parents=True, exist_ok=True)
    study, sampler = _open(cell, journals)
    scoring = FakeScoring(cell.sublayers)
    cost, number = 0.0, len(study.ended)
    while number < most_trials and cost <= most_seconds:
        begun, in_sampler, in_scoring = perf_counter(), sampler.seconds, scoring.seconds
        with study.trial():
            trial, draft = study.ask()
            study.tell(trial, scoring.score(trial, draft))
        cost = perf_counter() - begun - (scoring.seconds - in_scoring)
        row = {"trial": number, "seconds": cost, "sampler_seconds": sampler.seconds - in_sampler}
        append_jsonl(log, cell.key | row | {"journal_bytes": (journals / "journal.log").stat().st_size})
        number += 1
    begun = perf_counter()
    _open(cell, journals)
    ended = "trials" if number >= most_trials else "too slow"
    append_jsonl(log, cell.key | {"ended": ended, "trials": number, "open_seconds": perf_counter() - begun})
    shutil.rmtree(journals)


def _open(cell: Cell, journals: Path) -> tuple[MeasuredStudy, TimedSampler]:
    """The study as a search opens it, with its strategy's sampler."""
    strategy = strategy_for(cell.sampler)
    space = joint_space(cell.sublayers // 2)
    encoding = Encoding(space, (PolicyKind.COST_AWARE,), (16,), as_reals=strategy.as_reals)
    made: list[TimedSampler] = []

    def timed(seed: int) -> BaseSampler:
        made.append(TimedSampler(strategy.sampler(seed)))
        return made[-1]

    study = MeasuredStudy(journals, TrialSettings(encoding, 0, timed, cell.sampler.value))
    return study, made[-1]

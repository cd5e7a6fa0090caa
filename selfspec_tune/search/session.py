"""One run of a search's command: what its stages share."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.draft import Draft
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.search.budget import Clock
from selfspec_tune.search.estimates import Estimates
from selfspec_tune.search.schedule import Schedule
from selfspec_tune.search.sessions import Sessions
from selfspec_tune.search.setting import Setting
from selfspec_tune.search.strategies import Strategy, strategy_for
from selfspec_tune.search.study_folder import StudyFolder
from selfspec_tune.search.trajectory import Incumbent, Trajectory


@dataclass(frozen=True, slots=True)
class Session:
    """A setting, how much of it is for which stage, where what is found is kept, how long it has taken, who is told."""

    setting: Setting
    schedule: Schedule
    estimates: Estimates
    folder: StudyFolder
    sessions: Sessions
    clock: Clock
    reporter: Reporter

    @property
    def request(self) -> SearchRequest:
        """What was asked for."""
        return self.setting.request

    @property
    def workload(self) -> Workload:
        """The open model with its runner."""
        return self.setting.workload

    @property
    def strategy(self) -> Strategy:
        """How candidates come and are scored."""
        return strategy_for(self.request.strategy)

    @property
    def predicts(self) -> bool:
        """Whether candidates are predicted before any is measured."""
        return self.schedule.num_texts > 0

    @property
    def seed(self) -> int:
        """Of every draw."""
        return self.request.prompts.seed

    def note(self, best: Draft, score: float, stage: str) -> None:
        """Keep a new best of the search."""
        Trajectory(self.folder.trajectory).note(Incumbent(self.clock.elapsed, best, score, stage))

    def tick(self) -> None:
        """Keep the time spent so far."""
        self.folder.note_time(self.clock.elapsed)

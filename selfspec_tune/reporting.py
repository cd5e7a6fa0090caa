"""What long-running work tells whoever watches it.

Search and bench know nothing of terminals: they call a `Reporter`. The CLI
passes a live Rich display, plain lines, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from selfspec_tune.draft import Draft

if TYPE_CHECKING:
    from selfspec_tune.intervals import Interval  # which brings numpy, and help pages need none


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: ``done`` of ``total`` units, ``seconds_left`` where a deadline is known."""

    done: int
    total: int | None = None
    seconds_left: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Candidate:
    """One draft with what is known of it so far.

    ``speedup`` is end to end; ``stopped_early`` marks a trial that the pruner ended;
    ``disagreement`` says how far its time is from what its counts should have taken, where that is much.
    """

    number: int
    origin: str
    draft: Draft
    speedup: Interval | None
    acceptance_rate: float | None = None
    stopped_early: bool = False
    disagreement: str | None = None


@runtime_checkable
class Reporter(Protocol):
    """Receives events; must not raise, and must return at once."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage starts (``load``, ``calibrate``, ``importance``, ``proxy``, ``trials``, …)."""

    def progress(self, progress: Progress) -> None:
        """The current stage moved on."""

    def trial(self, candidate: Candidate) -> None:
        """A measured trial ended."""

    def best(self, candidate: Candidate) -> None:
        """There is a new best candidate."""

    def notice(self, message: str) -> None:
        """Something the user should know (a fall-back, a warning, what to do about noise)."""


class SilentReporter:
    """Discards every event."""

    def stage(self, name: str, detail: str = "") -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def trial(self, candidate: Candidate) -> None: ...
    def best(self, candidate: Candidate) -> None: ...
    def notice(self, message: str) -> None: ...

"""The time that a search has: the clock against its limit, what fixed parts of it are for, and how many trials."""

from __future__ import annotations

from time import monotonic

# Trials shorter than this measure how answers begin and noise; longer ones cost more than they tell.
TRIAL_TOKENS = 48
TRIAL_ITEMS = 8
SELECTION_TOKENS = 96
NUM_FINALISTS = 4
SELF_SD_TOKENS = 32  # of each of 8 prompts: as Self-SD's own search measures
SWIFT_TOKENS = 50  # of context, as SWIFT scores
NUM_SELECTION_ITEMS = 8  # at least, where there are so many; more where the time allows: few prompts overstate
NUM_REFERENCE_ITEMS = 8
NUM_HELD_OUT = 6  # selection prompts whose answers tell whether the search learns its own text by heart
DEFAULT_TRIALS = 40
WIDE_WINDOWS = 32  # of calibration text that the best few candidates are scored on
NUM_CANDIDATES = 12  # of those predicted, for whose trials time is kept; more are measured where there is more
FEWEST_SCORED = 4  # candidates on each text besides starts, however little time is left
_LEAST_PROXY_SHARE = 1 / 9  # of the whole time that predictions take
_MOST_PROXY_SHARE = 0.3  # beyond it, they learn their text by heart
_MOST_COSTS_SECONDS = 25.0
_IMPORTANCE_SHARE = 1 / 12  # of the whole time


class Clock:
    """Time since the command began, earlier interrupted runs of it included, against a limit."""

    def __init__(self, timeout_seconds: float | None, spent_before: float = 0.0) -> None:
        self._begun = monotonic() - spent_before
        self._spent_before = spent_before
        self._timeout = timeout_seconds

    @property
    def elapsed(self) -> float:
        """Seconds spent on this search in all."""
        return monotonic() - self._begun

    @property
    def elapsed_now(self) -> float:
        """Seconds since this run of the command began."""
        return self.elapsed - self._spent_before

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self._timeout is None else self._timeout - self.elapsed


def proxy_seconds(timeout_seconds: float | None, spare: float = 0.0) -> float:
    """Time for candidates without decoding: ``spare`` seconds, from a ninth to 30 % of all.

    Two minutes where only trials are bounded.
    """
    if timeout_seconds is None:
        return 120.0
    return min(max(spare, _LEAST_PROXY_SHARE * timeout_seconds), _MOST_PROXY_SHARE * timeout_seconds)


def costs_seconds(timeout_seconds: float | None) -> float:
    """Time for measuring the cost model: a quarter of what candidates without decoding get, while that tells more."""
    return min(proxy_seconds(timeout_seconds) / 4, _MOST_COSTS_SECONDS)


def importance_seconds(timeout_seconds: float | None) -> float:
    """Most time for telling how much each sub-layer matters."""
    return float("inf") if timeout_seconds is None else _IMPORTANCE_SHARE * timeout_seconds


def max_trials(trials: int | None, timeout_seconds: float | None) -> int:
    """Most trials to measure; only the time bounds them where only a time was given."""
    if trials is not None:
        return trials
    return DEFAULT_TRIALS if timeout_seconds is None else 10_000

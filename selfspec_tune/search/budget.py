"""The time that a search has, how much each stage does in it, and what is given up where it is short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from time import monotonic
from typing import Any

from selfspec_tune.intervals import FEWEST_TESTED

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
FEWEST_SELECTION = 4
_FEW_ANSWERS, _FEWEST_ANSWERS = 8, 4  # of the calibration prompts
_FEWEST_WINDOWS = 4
_FEW_TRIALS = 4  # fewer are told
_FEW_REFERENCES, _FEWEST_REFERENCES = 4, 3
_SHORTEST_ANSWERS = 32


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


@dataclass(frozen=True, slots=True)
class Schedule:
    """What each stage of a search does at most; of trials and test prompts, what time is kept for.

    Attributes:
        max_new_tokens: of every answer.
        num_calibration: prompts whose answers the search reads.
        num_held_out: selection prompts whose answers tell overfitting.
        num_texts: texts on which candidates are predicted, each wider than the one before; 0: none is predicted.
        num_trials: trials.
        num_windows: windows of text that a trial decodes.
        num_finalists: drafts that compete on selection prompts; 1: the best of the trials is taken.
        num_selection: selection prompts that they compete on.
        num_test: test prompts.
        num_references: those of them on which the baseline is checked too.
    """

    max_new_tokens: int
    num_calibration: int
    num_held_out: int
    num_texts: int
    num_trials: int
    num_windows: int
    num_finalists: int
    num_selection: int
    num_test: int
    num_references: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def going_on_from(self, earlier: Schedule) -> Schedule:
        """This one for a search that began by ``earlier``: what was read stays, so that no table mixes answers."""
        return replace(
            self,
            max_new_tokens=earlier.max_new_tokens,
            num_calibration=earlier.num_calibration,
            num_held_out=earlier.num_held_out,
            num_texts=earlier.num_texts,
            num_windows=earlier.num_windows,
            num_finalists=max(self.num_finalists, earlier.num_finalists),
            num_selection=max(self.num_selection, earlier.num_selection),
            num_test=max(self.num_test, earlier.num_test),
            num_references=max(self.num_references, earlier.num_references),
        )

    def for_sound(self, sound_share: float, most: int) -> Schedule:
        """This one with time for as many test prompts, of ``most``, as give 8 answers that do not degenerate."""
        wanted = ceil(FEWEST_TESTED / sound_share) if sound_share else most
        return replace(self, num_test=max(self.num_test, min(wanted, most)))


def reductions(full: Schedule, *, fewest_texts: int = 0) -> Iterator[Schedule]:
    """``full``, then ever less, a little each time: trials and what they rest on, finalists, test prompts, answers.

    ``fewest_texts``: 1 where a draft must be predicted before it can be measured.
    """
    yield full
    for name, values in _ladder(full, fewest_texts):
        for value in values:
            if value < getattr(full, name):
                full = replace(full, **{name: value})
                yield full


def _ladder(full: Schedule, fewest_texts: int) -> Iterator[tuple[str, range | tuple[int, ...]]]:
    yield "num_trials", range(full.num_trials - 1, 0, -1)
    yield "num_held_out", (0,)
    yield "num_calibration", (_FEW_ANSWERS,)
    yield "num_texts", (2, 1)
    yield "num_windows", (_FEWEST_WINDOWS,)
    yield "num_calibration", (_FEWEST_ANSWERS,)
    yield "num_finalists", range(full.num_finalists - 1, 1, -1)
    yield "num_selection", range(full.num_selection - 1, FEWEST_SELECTION - 1, -1)
    yield "num_references", (_FEW_REFERENCES,)
    yield "num_test", range(full.num_test - 1, FEWEST_TESTED - 1, -1)
    yield "num_references", (_FEWEST_REFERENCES,)
    yield "max_new_tokens", range(full.max_new_tokens - 1, _SHORTEST_ANSWERS - 1, -1)
    yield "num_finalists", (1,)
    yield "num_texts", (fewest_texts,)


def told(full: Schedule, fitted: Schedule) -> Iterator[str]:
    """What ``fitted`` gives up of ``full``, a line each, with what that does to the test's interval.

    Nothing of fewer trials while there are some: more are measured wherever time is left.
    """
    same = "this leaves the test's interval as it is"
    if fitted.num_trials < min(_FEW_TRIALS, full.num_trials) or fitted.num_windows < full.num_windows:
        rests = "the draft rests more on predictions" if fitted.num_texts else "the choice of the draft is less sure"
        yield (
            f"time for about {_several(fitted.num_trials, 'trial')} of {_several(fitted.num_windows, 'window')}, not "
            f"{full.num_trials} of {full.num_windows}: {rests}; {same}"
        )
    if fitted.num_texts == 0 < full.num_texts:
        yield f"no time to predict which sub-layers to skip: the draft is one that needs no search; {same}"
    elif fitted.num_texts:
        if fewer := list(_told_of_predictions(full, fitted)):
            yield f"predictions {', and '.join(fewer)}: they are less sure; {same}"
    elif fitted.num_calibration < full.num_calibration:
        yield (
            f"trials decode the answers to {fitted.num_calibration} prompts, not {full.num_calibration}: the choice of "
            f"the draft is less sure; {same}"
        )
    if fitted.num_finalists == 1 < full.num_finalists:
        yield f"no time for finalists: the best of the trials is tested; {same}"
    elif (fitted.num_finalists, fitted.num_selection) != (full.num_finalists, full.num_selection):
        yield (
            f"{fitted.num_finalists} finalists on {fitted.num_selection} prompts, not {full.num_finalists} on "
            f"{full.num_selection}: the choice among them is less sure; {same}"
        )
    is_shorter_test = fitted.num_test < full.num_test
    if fitted.max_new_tokens < full.max_new_tokens:
        wider = sqrt(full.max_new_tokens * full.num_test / (fitted.max_new_tokens * fitted.num_test))
        on = f"time to test on about {fitted.num_test} of {full.num_test} prompts, with " if is_shorter_test else ""
        yield (
            f"{on}answers of up to {fitted.max_new_tokens} tokens, not {full.max_new_tokens}: the verdict is about "
            f"short answers, in which prompts take more of the time, and its interval is up to {wider:.1f} times as "
            "wide"
        )
    elif is_shorter_test:
        yield f"time to test on about {tested(fitted.num_test, full.num_test)}"


def _told_of_predictions(full: Schedule, fitted: Schedule) -> Iterator[str]:
    if fitted.num_calibration < full.num_calibration:
        yield f"read the answers to {fitted.num_calibration} prompts, not {full.num_calibration}"
    if fitted.num_texts < full.num_texts:
        yield f"are made on {_several(fitted.num_texts, 'text')}, not {full.num_texts}"


def told_kept(whole: Schedule, earlier: Schedule) -> Iterator[str]:
    """What a search that goes on keeps of ``earlier``, by which it was begun, though ``whole`` were more; one line."""
    kept = {
        "max_new_tokens": f"answers of up to {earlier.max_new_tokens} tokens",
        "num_calibration": _several(earlier.num_calibration, "calibration prompt"),
        "num_texts": f"{earlier.num_texts} of {_several(whole.num_texts, 'text')} to predict on",
        "num_windows": f"trials of {_several(earlier.num_windows, 'window')}",
    }
    short = [words for name, words in kept.items() if getattr(earlier, name) < getattr(whole, name)]
    if short:
        yield f"this search was begun with {', '.join(short)}, and keeps to that; a new `out` begins with whole ones"


def tested(number: int, of: int) -> str:
    """``16 of 32 prompts: its interval is about 1.4 times as wide``."""
    return f"{number} of {of} prompts: the interval is about {sqrt(of / number):.1f} times as wide"


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

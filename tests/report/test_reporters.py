from __future__ import annotations

import io

import pytest
from rich.console import Console

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import Interval
from selfspec_tune.report.progress import LiveReporter, PlainReporter
from selfspec_tune.reporting import Candidate, Progress

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def a_terminal_that_moves_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live display leaves a terminal that calls itself dumb alone, as that of a CI run may."""
    monkeypatch.setenv("TERM", "xterm")


def candidate(number: int = 3, *, stopped_early: bool = False, num_layers: int = 16) -> Candidate:
    draft = Draft(SkipSet(num_layers, (2, 3, 4), (5,)))
    return Candidate(number, "tpe", draft, Interval(1.08, 1.01, 1.15), 0.82, stopped_early)


def plain() -> tuple[PlainReporter, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainReporter(stream, clock=clock), stream, clock


def live(width: int = 60) -> tuple[LiveReporter, Console, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=width, height=30, color_system=None)
    return LiveReporter(console, clock=clock), console, stream, clock


def test_plain_lines_name_the_stage() -> None:
    reporter, stream, _ = plain()
    reporter.stage("calibrate", "16 prompts")
    reporter.trial(candidate())
    reporter.best(candidate())
    reporter.notice("the machine is busy")
    assert stream.getvalue().splitlines() == [
        "[calibrate] 16 prompts",
        "[calibrate] #3 tpe: 1.08× [1.01–1.15], acceptance 82 %, attn 2-4 · mlp 5",
        "[best] #3 tpe: 1.08× [1.01–1.15], acceptance 82 %, attn 2-4 · mlp 5",
        "note: the machine is busy",
    ]


def test_plain_progress_comes_at_most_every_20_seconds() -> None:
    reporter, stream, clock = plain()
    reporter.stage("trials")
    for done in range(1, 41):
        clock.now += 1
        reporter.progress(Progress(done, 40, seconds_left=725 - done))
    assert stream.getvalue().splitlines() == [
        "[trials]",
        "[trials] 20/40, 11:45 left",
        "[trials] 40/40, 11:25 left",
    ]


def test_a_stopped_and_an_unmeasured_trial_say_so() -> None:
    reporter, stream, _ = plain()
    reporter.trial(candidate(stopped_early=True))
    reporter.trial(Candidate(4, "predicted", Draft(SkipSet(16)), None))
    first, second = stream.getvalue().splitlines()
    assert "stopped early" in first
    assert second == "[start] #4 predicted: not measured, none"


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (Draft(SkipSet(16), experts=2), "2 experts a token"),
        (Draft(SkipSet(16), experts=1, precision=DraftPrecision.uniform(16, Precision.INT4)), "int4, 1 expert a token"),
        (Draft(SkipSet(16, (2,)), experts=1), "attn 2, 1 expert a token"),
    ],
)
def test_what_a_draft_has_less_of_is_said(draft: Draft, said: str) -> None:
    reporter, stream, _ = plain()
    reporter.trial(Candidate(4, "tpe", draft, None))
    assert stream.getvalue().splitlines() == [f"[start] #4 tpe: not measured, {said}"]
    reporter, _, stream, _ = live()
    with reporter:
        reporter.stage("trials")
        reporter.best(Candidate(4, "tpe", draft, None))
        shown = stream.getvalue()
    assert ", ".join(draft.coarser) in shown


def test_a_closed_stream_does_not_stop_the_work() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError("no space left")

    PlainReporter(Full()).notice("nobody reads this")


def test_the_live_display_shows_stage_best_map_trials_and_time_left() -> None:
    reporter, _, stream, clock = live()
    with reporter:
        reporter.stage("trials", "12 windows")
        reporter.trial(candidate(1))
        reporter.best(candidate(1))
        clock.now += 1
        reporter.progress(Progress(1, 40, seconds_left=725, detail="next"))
        shown = stream.getvalue()
    for part in ("trials", "12 windows", "1/40", "12:05 left", "best 1.08× [1.01–1.15]", "#1 tpe", "82 %"):
        assert part in shown
    assert all(row in shown for row in candidate().draft.skip_set.layer_map().splitlines())


@pytest.mark.parametrize("width", [60, 100])
def test_no_line_of_the_live_display_is_wider_than_the_terminal(width: int) -> None:
    reporter, console, _, _ = live(width)
    reporter.stage("trials", "a detail that goes on and on " * 8)
    reporter.progress(Progress(12, 400, 5000.0, "another detail that goes on " * 4))
    for number in range(10):
        reporter.trial(candidate(number, num_layers=80, stopped_early=number % 2 == 0))
    reporter.best(candidate(num_layers=80))
    with console.capture() as capture:
        console.print(reporter._render())
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("tpe" in line for line in lines) == 5  # the best, and the last four trials
    assert len(lines) <= 12


def test_the_live_display_redraws_on_events_only_and_not_too_often() -> None:
    reporter, _, stream, clock = live()
    with reporter:
        reporter.stage("proxy")
        clock.now += 1
        reporter.progress(Progress(1, 100))
        before = len(stream.getvalue())
        reporter.progress(Progress(2, 100))
        assert len(stream.getvalue()) == before
        clock.now += 0.2
        reporter.progress(Progress(3, 100))
        assert "3/100" in stream.getvalue()[before:]


def test_finished_stages_and_notices_stay_on_the_screen() -> None:
    reporter, _, stream, clock = live()
    with reporter:
        reporter.stage("calibrate", "16 prompts")
        clock.now += 65
        reporter.stage("trials")
        reporter.notice("the machine is busy")
    assert "✓ calibrate  16 prompts  1:05" in stream.getvalue()
    assert "✓ trials" in stream.getvalue()
    assert "note: the machine is busy" in stream.getvalue()


def interrupt_within(reporter: LiveReporter) -> None:
    with reporter:
        reporter.stage("trials")
        raise KeyboardInterrupt


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    reporter, _, stream, _ = live()
    with pytest.raises(KeyboardInterrupt):
        interrupt_within(reporter)
    shown = stream.getvalue()
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "✓ trials" not in shown

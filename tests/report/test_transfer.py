"""The transfer matrix in the terminal and as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from selfspec_tune.intervals import Interval
from selfspec_tune.report.comparison import print_transfer, router_lines, router_verdict
from selfspec_tune.report.plot import write_transfer
from selfspec_tune.results import TransferResult
from tests.results_kit import TASKS, UNSURE, transfer_result, transfer_row


def shown(found: TransferResult, width: int) -> str:
    stream = io.StringIO()
    print_transfer(Console(file=stream, width=width, color_system=None, highlight=False), found)
    return stream.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 120, 200])
def test_the_matrix_fits_the_terminal_and_no_figure_is_cut(width: int) -> None:
    text = shown(transfer_result(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("1.21×") >= len(TASKS) ** 2
    for task in TASKS:
        assert task in text


def test_a_wide_terminal_shows_the_intervals() -> None:
    assert shown(transfer_result(), 200).count("[1.15–1.27]") > 7 * 7


def test_a_draft_is_marked_on_its_own_task() -> None:
    for width in (50, 100, 200):
        assert shown(transfer_result(), width).count("1.21×*") == len(TASKS)


def test_a_draft_without_a_figure_has_a_dash() -> None:
    lossy = transfer_row("all", by_task=dict.fromkeys(TASKS), overall=None, selection_speedup=None)
    assert "–" in shown(transfer_result(None, rows=[lossy, *map(transfer_row, TASKS)]), 120)


def test_the_sentences_say_what_each_way_of_picking_got() -> None:
    single, own, nearest = router_lines(transfer_result())
    assert single.startswith("One draft for everything: all, the fastest on selection prompts (1.21× [1.15–1.27]")
    assert "1.21× [1.15–1.27], 1.02× [0.97–1.08] as fast as the one draft." in own
    assert nearest.endswith("75 % of prompts go to their own task.")


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (UNSURE, "No router wins"),
        (Interval(0.9, 0.85, 0.95), "No router wins"),
        (Interval(1.1, 1.05, 1.15), "A router wins: picking by own task and by nearest task"),
        (None, "No verdict on routers"),
    ],
)
def test_a_router_wins_only_where_its_whole_interval_lies_above_one(ratio: Interval | None, verdict: str) -> None:
    assert router_verdict(transfer_result(ratio)).startswith(verdict)
    assert router_verdict(transfer_result(ratio)) in " ".join(shown(transfer_result(ratio), 100).split())


def test_warnings_of_the_bench_are_passed_on() -> None:
    assert "warning: too noisy" in shown(transfer_result(warnings=["too noisy"]), 100)


@pytest.mark.parametrize("name", ["map.svg", "map.png"])
def test_the_matrix_is_drawn(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    lossy = transfer_row("chat", by_task=dict.fromkeys(TASKS), overall=None)
    write_transfer(transfer_result(rows=[transfer_row("all"), lossy]), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_the_share_of_degenerate_answers_stands_beside_the_matrix(tmp_path: Path) -> None:
    shares: dict[str, float | None] = {**dict.fromkeys(TASKS, 0.0), "chat": 0.25}
    rows = [transfer_row(name, degenerate_share=0.1, degenerate_by_task=shares) for name in ("all", *TASKS)]
    line = "Degenerate answers: 10 % (chat 25 %), counted in the figures."
    assert line in shown(transfer_result(rows=rows), 100)
    sound = [transfer_row(name, degenerate_share=0.0) for name in ("all", *TASKS)]
    assert "Degenerate answers: 0 %." in shown(transfer_result(rows=sound), 100)
    assert "egenerate" not in shown(transfer_result(), 100)
    pytest.importorskip("matplotlib")
    write_transfer(transfer_result(rows=rows), tmp_path / "map.svg")
    assert line in (tmp_path / "map.svg").read_text()

from __future__ import annotations

import math

import pytest

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import Interval
from selfspec_tune.report import text
from selfspec_tune.results import PositionCounts


def test_a_speedup_is_written_with_its_bounds() -> None:
    assert text.speedup(Interval(1.214, 1.149, 1.27)) == "1.21× [1.15–1.27]"
    assert text.speedup(None) == "–"


def test_an_exact_ratio_has_no_bounds() -> None:
    assert text.speedup(Interval(1.0, 1.0, 1.0)) == "1.00×"


def test_an_interval_that_says_nothing_is_called_unbounded() -> None:
    assert text.speedup(Interval(1.1, 0.0, math.inf)) == "1.10× [unbounded]"


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, "0:00"), (-3, "0:00"), (45.4, "0:45"), (725, "12:05"), (3725, "1:02:05")]
)
def test_durations_are_written_like_a_clock(seconds: float, written: str) -> None:
    assert text.duration(seconds) == written


@pytest.mark.parametrize(
    ("num_bytes", "written"), [(512, "512 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_are_written_in_binary_units(num_bytes: int, written: str) -> None:
    assert text.size(num_bytes) == written


def test_later_positions_of_a_draft_stand_together() -> None:
    counts = PositionCounts(
        drafted=[9, 8, 7, 6, *[4] * 6], reached=[9, 8, 7, 6, *[4] * 6], accepted=[9, 4, 7, 3, *[1] * 6]
    )
    first = "100 % of 9 at 1, 50 % of 8 at 2, 100 % of 7 at 3, 50 % of 6 at 4"
    assert text.by_position(counts) == f"{first}, 25 % of 16 at 5–8, 25 % of 8 at 9–10"
    assert text.by_position(PositionCounts(drafted=[2], reached=[2], accepted=[1])) == "50 % of 2 at 1"
    assert text.by_position(None) == "–"


def test_a_layer_map_that_fits_keeps_its_two_rows() -> None:
    skip_set = SkipSet(8, (1,), (7,))
    assert text.layer_map_rows(skip_set, 60) == skip_set.layer_map().splitlines()


def test_a_layer_map_too_wide_is_broken_without_losing_a_layer() -> None:
    skip_set = SkipSet(80, tuple(range(0, 80, 3)), (79,))
    rows = text.layer_map_rows(skip_set, 60)
    assert len(rows) == 4
    assert max(map(len, rows)) <= 60
    attention, mlp = skip_set.layer_map().splitlines()
    assert rows[0][5:] + rows[2][5:] == attention[5:]
    assert rows[1][5:] + rows[3][5:] == mlp[5:]
    assert rows[2].startswith("55 ")


def test_what_a_terminal_would_act_on_is_spelled_out() -> None:
    assert text.spelled_out("a\x1b[2J\n\tb\x9b\u202e é 😀", 100) == r"a\x1b[2J\n\tb\x9b\u202e é 😀"
    assert text.spelled_out("abc\ndefghijk", 6) == r"abc […6 characters…] ijk"

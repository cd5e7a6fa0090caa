from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from selfspec_tune import export
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.intervals import Interval
from selfspec_tune.report.plot import check_plot, series, write_plot
from selfspec_tune.report.sweep import curves, plot_rows, print_sweep
from selfspec_tune.results import NullRun, SweepPoint, SweepResult
from selfspec_tune.results.metrics import memory_limit, summarise, summarise_baseline
from tests.results_kit import MODEL, SKIP
from tests.runs import paired_run

RUNS = [paired_run("a/1")]


def sweep_result(*speedups: float, second: bool = False, lossy: tuple[int, ...] = (), **fields: Any) -> SweepResult:
    """A sweep of contexts 256, 512, … with a skip set at these decode speedups."""
    points = []
    for number, speedup in enumerate(speedups):
        runs = [
            paired_run(
                f"set/{i}",
                method="self-speculative:1",
                candidate=(11, 0.5, (2.0 + 0.02 * (i % 3)) / speedup),
                lossless="mismatch" if number in lossy else "identical",
                point=256.0 * 2**number,
            )
            for i in range(8)
        ]
        methods = [summarise_baseline(runs), summarise("self-speculative:1", "self-speculative", runs, skip=SKIP)]
        if second:
            methods.append(summarise("self-speculative:2", "self-speculative", runs, skip=SkipSet(12, (1,))))
        even = Interval(1.0, 0.98, 1.02)
        points.append(
            SweepPoint(
                value=256 * 2**number,
                prompt_tokens=255.5 * 2**number,
                verdict="withheld" if number in lossy else "faster",
                methods=methods,
                a_a=NullRun(end_to_end=even, decode=even, num_prompts=8),
                baseline_vs_generate=1.2,
            )
        )
    values: dict[str, Any] = {"model": MODEL, "sweep": "context", "description": "how it was made", "points": points}
    return SweepResult(**(values | fields))


def printed(result: SweepResult, width: int) -> str:
    buffer = io.StringIO()
    print_sweep(Console(file=buffer, width=width, highlight=False), result)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_has_a_row_for_each_value_and_fits(width: int) -> None:
    page = printed(sweep_result(1.5, 1.3, 0.9), width)
    assert all(len(line) <= width for line in page.splitlines())
    for part in ("256", "512", "1024", "1.49×", "decode", "end to end", "accept", "MAT", "lossless", "how it was made"):
        assert part in page
    assert "●: decode speedup" in page
    header = next(line for line in page.splitlines() if "MAT" in line)
    assert ("tok/s" in header) == (width > 60)
    assert ("A-A" in header) == (width == 140)
    assert "Accepted by draft position:\n  256: 100 % of 24 at 1, 100 % of 24 at 2" in page
    assert "Baseline against itself: 1.00–1.00×" in page
    assert "Our baseline is 1.20–1.20× as fast as model.generate." in " ".join(page.split())


def test_each_value_has_its_share_of_the_memorys_limit() -> None:
    known = sweep_result(1.5, 1.3)
    for point, speed in zip(known.points, (10.0, 9.0), strict=True):
        runs = [run.model_copy(update={"plain_bytes": 1.0, "memory_bytes_per_second": speed}) for run in RUNS]
        point.methods[1] = summarise("self-speculative:1", "self-speculative", runs, skip=SKIP)
    limits = [memory_limit([paired_run(plain_bytes=1.0, memory_bytes_per_second=speed)]) for speed in (10.0, 9.0)]
    points = [p.model_copy(update={"memory_limit": limit}) for p, limit in zip(known.points, limits, strict=True)]
    page = printed(known.model_copy(update={"points": points}), 80)
    rows = [line.split() for line in page.splitlines() if "%" in line]
    assert [row[7] for row in rows if row[0] in ("256", "512")] == ["100", "111"]
    assert "Memory limit of plain bfloat16 decoding: 9.0–10.0 tok/s over the values." in page
    assert "Memory limit" not in printed(sweep_result(1.5, 1.3), 80)


def test_several_skip_sets_have_a_table_each() -> None:
    result = sweep_result(1.5, 1.3, second=True)
    assert [curve.label for curve in curves(result)] == [str(SKIP), "attn 1"]
    assert "\nattn 1\n" in "\n".join(line.rstrip() for line in printed(result, 100).splitlines())


def test_drafts_of_one_skip_set_are_told_apart_by_their_ids() -> None:
    result = sweep_result(1.5, 1.3, second=True)
    for point in result.points:
        point.methods[2] = point.methods[2].model_copy(update={"skip": point.methods[1].skip})
    assert [curve.label for curve in curves(result)] == ["self-speculative:1", "self-speculative:2"]


def test_warnings_and_sessions_are_told() -> None:
    sessions = [{"runs": 4}, {"runs": 12}]
    page = printed(sweep_result(1.5, warnings=["At 256: noisy."], provenance={"sessions": sessions}), 100)
    assert "warning: At 256: noisy." in page
    assert "Measured in 2 sessions (4, 12 pairs)" in page


def test_the_share_of_degenerate_answers_stands_beside_the_figures(tmp_path: Path) -> None:
    def with_shares(*shares: float | None, short: int = 0) -> SweepResult:
        result = sweep_result(1.5, 1.3)
        for point, share in zip(result.points, shares, strict=True):
            update = {"degenerate_share": share, "num_too_short": short}
            point.methods[1] = point.methods[1].model_copy(update=update)
        return result

    assert "Degenerate answers: 0 % at 256, 25 % at 512." in printed(with_shares(0.0, 0.25), 100)
    assert "Degenerate answers: none." in printed(with_shares(0.0, 0.0), 100)
    assert "Degenerate answers: none; up to 3 too short to tell." in printed(with_shares(0.0, 0.0, short=3), 100)
    assert "Degenerate answers: not known; up to 8 too short to tell." in printed(with_shares(None, None, short=8), 100)
    assert "egenerate" not in printed(with_shares(None, None), 100)
    pytest.importorskip("matplotlib")
    write_plot(with_shares(0.0, 0.25), tmp_path / "plot.svg")
    write_plot(with_shares(None, None), tmp_path / "older.svg")
    assert "Degenerate answers: 0 % at 256, 25 % at 512." in (tmp_path / "plot.svg").read_text()
    assert "egenerate" not in (tmp_path / "older.svg").read_text()


def test_the_plot_of_characters_marks_ratio_interval_and_one() -> None:
    (curve,) = curves(sweep_result(1.5, 0.8))
    above, below, scale = plot_rows(curve, 50)
    assert above.index("●") > above.index("│") > below.index("●")
    assert len(above) <= 10 + 50
    assert scale.strip().startswith("decode")
    assert "×" in scale


def test_a_lossy_value_is_not_drawn() -> None:
    (curve,) = curves(sweep_result(1.5, 1.4, lossy=(1,)))
    assert "●" not in plot_rows(curve, 40)[1]
    assert series(curve, "decode")[0] == [256]
    (nothing,) = curves(sweep_result(1.5, lossy=(0,)))
    assert plot_rows(nothing, 40) == []
    assert "–" in printed(sweep_result(1.5, lossy=(0,)), 100)


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
@pytest.mark.parametrize("lossy", [(), (0, 1)])
def test_a_picture_is_written(tmp_path: Path, name: str, lossy: tuple[int, ...]) -> None:
    pytest.importorskip("matplotlib")
    check_plot(tmp_path / name)
    write_plot(sweep_result(1.5, 1.3, second=True, lossy=lossy), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_a_plot_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a file that ends in .png or .svg"):
        check_plot(Path("plot.jpeg"))


def test_a_missing_matplotlib_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'selfspec-tune\[plots\]'"):
        check_plot(Path("plot.png"))


def test_the_tables_of_a_sweep_have_a_row_for_each_value_and_method(tmp_path: Path) -> None:
    result = sweep_result(1.5, 1.3)
    export.write_csv(result, tmp_path / "a.csv")
    export.write_parquet(result, tmp_path / "a.parquet")
    for frame in (pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "a.parquet")):
        assert list(frame["value"]) == [256, 256, 512, 512]
        assert set(frame["sweep"]) == {"context"}
        assert {"decode_speedup", "decode_speedup_low", "acceptance_rate", "lossless_identical"} <= set(frame.columns)

"""Bench results in other programs' files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.export.spec_bench import spec_bench_rows
from selfspec_tune.export.tables import to_frame
from selfspec_tune.results import BenchResult, ModelInfo
from selfspec_tune.results.metrics import summarise, summarise_baseline
from tests.runs import paired_run

RUNS = [
    paired_run("a/1"),
    paired_run("a/1", round=1, candidate=(11, 0.5, 1.5)),
    paired_run("a/2", baseline=(5, 1.0, 1.0), candidate=(5, 1.0, 0.5), accepted=(3,), drafted=(4,), task="qa"),
]


def read_like_spec_bench(method_file: Path, base_file: Path, task: str) -> tuple[float, float, float]:
    """MAT, speedup and baseline tokens/s as evaluation/speed.py of Spec-Bench works them out.

    A question's speed is its tokens over its wall time; the speedup divides mean speeds. The
    baseline's tokens are counted from its text, less one for the token that begins it.
    """

    def questions(path: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row["choices"][0] for row in rows if task in ("overall", row["category"])]

    speeds, lengths = [], []
    for choice in questions(method_file):
        lengths += choice["accept_lengths"]
        speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
    base_speeds = []
    for choice in questions(base_file):
        tokens = sum(len(["<s>", *turn.split()]) - 1 for turn in choice["turns"])
        base_speeds.append(tokens / sum(choice["wall_time"]))
    return fmean(lengths), fmean(speeds) / fmean(base_speeds), fmean(base_speeds)


def test_spec_bench_reads_our_rows_and_finds_our_figures(tmp_path: Path) -> None:
    answers = {"a/1": " ".join(["word"] * 11), "a/2": " ".join(["word"] * 5)}
    for name, method in (("ours", "best"), ("base", "autoregressive")):
        rows = spec_bench_rows([RUNS[0], RUNS[2]], method, answers=answers)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mat, speedup, base_speed = read_like_spec_bench(tmp_path / "ours", tmp_path / "base", "overall")
    assert mat == pytest.approx((4 + 3 + 3 + 4) / 4)
    assert base_speed == pytest.approx((11 / 2.5 + 5 / 2.0) / 2)
    assert speedup == pytest.approx((11 / 1.5 + 5 / 1.5) / 2 / base_speed)
    assert read_like_spec_bench(tmp_path / "ours", tmp_path / "base", "qa")[0] == 4.0


def test_spec_bench_rows_have_its_fields_and_a_choice_for_each_round() -> None:
    first, second = spec_bench_rows(RUNS, "best")
    assert {"question_id", "category", "model_id", "choices", "tstamp"} <= first.keys()
    assert (first["question_id"], first["category"], first["model_id"]) == (1, "code", "best")
    assert [choice["index"] for choice in first["choices"]] == [0, 1]
    assert [choice["wall_time"] for choice in first["choices"]] == [[1.5], [2.0]]
    assert second["choices"][0]["accept_lengths"] == [4]
    baseline = spec_bench_rows(RUNS, "autoregressive")[1]["choices"][0]
    assert baseline["accept_lengths"] == [1] * 5
    assert baseline["decoding_steps"] == [5]


def test_spec_bench_rows_leave_other_methods_out() -> None:
    runs = [paired_run("intro"), paired_run("intro", method="other")]
    assert spec_bench_rows(runs, "third") == []
    assert [row["question_id"] for row in spec_bench_rows(runs, "other")] == ["intro"]
    assert len(spec_bench_rows(runs, "autoregressive")[0]["choices"]) == 1


def test_questions_are_numbered_only_where_the_numbers_tell_them_apart() -> None:
    rows = spec_bench_rows([paired_run("code/1"), paired_run("qa/1")], "best")
    assert [row["question_id"] for row in rows] == ["code/1", "qa/1"]
    rows = spec_bench_rows([paired_run("spec-bench/81"), paired_run("spec-bench/82")], "best")
    assert [row["question_id"] for row in rows] == [81, 82]


def test_the_table_has_a_row_for_each_method() -> None:
    limited = [run.model_copy(update={"plain_bytes": 1.0, "memory_bytes_per_second": 4.0}) for run in RUNS]
    result = BenchResult(
        model=ModelInfo(id="m", fingerprint="f", num_layers=4),
        verdict="undecided",
        methods=[
            summarise_baseline(limited),
            summarise("best", "self-speculative", limited, skip=SkipSet(4, (1, 2))),
            summarise("bad", "self-speculative", [paired_run(lossless="mismatch")]),
        ],
    )
    frame = to_frame(result)
    assert list(frame["id"]) == ["autoregressive", "best", "bad"]
    assert frame.loc[1, "decode_tokens_per_second"] == pytest.approx(24 / 3)
    assert frame.loc[1, "of_memory_limit"] == pytest.approx(24 * 0.25 / 3)
    assert frame["of_memory_limit_low"].isna().tolist() == [False, False, True]
    assert frame.loc[1, "attention"] == "1,2"
    assert frame.loc[1, "end_to_end_speedup"] == pytest.approx(1.4)
    assert frame.loc[0, "decode_speedup_low"] == 1.0
    assert frame["end_to_end_speedup"].isna().tolist() == [False, False, True]
    assert frame["lossless_mismatches"].tolist() == [0, 0, 1]

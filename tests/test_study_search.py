"""``scripts/study_search``: what decode time is made of, and the tables of a comparison that has ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import UsageError
from selfspec_tune.files import write_json_atomic
from selfspec_tune.results import BenchResult, PairedRun, Score
from selfspec_tune.statistics import Interval
from selfspec_tune.summary import summarise, summarise_baseline
from tests import scripts_kit
from tests.results_kit import SKIP, bench_result, skip_config
from tests.runs import paired_run

import _gap as gap  # isort: skip  # from scripts/, by scripts_kit

EARLY, LATE, OTHER = "self-speculative:early", "self-speculative:late", "self-speculative:other"


def test_decode_time_is_split_in_plain_steps() -> None:
    # Plain: 10 steps in 2 s. Ours: 3 rounds in 1 s, 10 drafted, 7 accepted, 0.4 s drafting, 0.5 s verifying.
    run = paired_run()
    run = run.model_copy(update={"candidate": run.candidate.model_copy(update={"verify_seconds": 0.5})})
    found = gap.split([run, run])
    assert found is not None
    assert (found.tokens, found.drafted, found.acceptance) == pytest.approx((10 / 3, 10 / 3, 0.7))
    assert (found.drafting, found.verifying, found.other) == pytest.approx((2 / 3, 5 / 6, 1 / 6))
    assert found.speedup == pytest.approx(2.0)
    assert found.without == pytest.approx(
        {
            "every drafted token accepted": (10 / 3 + 1) / (5 / 3),
            "drafting free": 10 / 3,
            "verification in a plain step": 2.0,  # it is not slower than one here
            "nothing beside drafting and verification": 10 / 3 / 1.5,
        }
    )
    assert "of which 70% are accepted, and gives 3.33" in gap.lines(found)[0]


def test_what_drafted_nothing_is_not_split() -> None:
    plain = paired_run(accepted=(0, 0), drafted=(0, 0))
    assert gap.split([plain]) is None
    assert gap.split([]) is None
    assert gap.lines(None) == ["- No round was drafted, so there is nothing to split."]


def pairs(method: str, speedup: float) -> list[PairedRun]:
    return [
        paired_run(f"set/{i}", method=method, candidate=(11, 0.5, 2.0 / (speedup * (1 + 0.01 * (i % 3)))))
        for i in range(8)
    ]


def common_bench(**speedups: float) -> BenchResult:
    runs = {method: pairs(method, speedup) for method, speedup in speedups.items()}
    methods = [summarise_baseline(runs[LATE])]
    methods += [summarise(id_, "self-speculative", of, skip=SKIP, description="how") for id_, of in runs.items()]
    return bench_result(methods=methods, runs=[run for of in runs.values() for run in of])


def ended_comparison(out: Path, **speedups: float) -> None:
    """What ``selfspec-tune compare`` leaves of two strategies."""
    common_bench(**{EARLY: 1.3, LATE: 1.4, OTHER: 1.2} | speedups).save(out / "bench.json")
    entries: list[dict[str, Any]] = [
        {"strategy": "staged", "seconds": 270, "draft": "attn 2 (cost-aware 16, prior 0.9 0.1)", "method": EARLY},
        {"strategy": "staged", "seconds": 2690.3, "draft": "attn 2-4,9 · mlp 5", "method": LATE},
        {"strategy": "tpe", "seconds": 2701.0, "draft": "attn 1", "method": OTHER},
    ]
    write_json_atomic(out / "compare.json", {"schema": "selfspec-tune/compare", "version": 1, "entries": entries})
    for name, promised in (("staged", {"value": 1.3, "low": 1.2, "high": 1.4}), ("tpe", None)):
        provenance = skip_config().provenance | {"search": {"selection_speedup": promised}}
        score = Score(verdict="faster", end_to_end_speedup=Interval(1.2, 1.1, math.inf), num_prompts=32)
        skip_config(provenance=provenance, score=score).save(out / name / "skip.json")


def study(out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    options = ("--model", "models/tiny", "--out", str(out), "--strategies", "staged,tpe", *options)
    assert scripts_kit.run_script(monkeypatch, "study_search", *options) == 0
    return (out / "README.md").read_text()


def test_a_comparison_that_has_ended_is_written_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_comparison(tmp_path)
    written = study(tmp_path, monkeypatch)
    assert f"scripts/study_search --model models/tiny --out {tmp_path.name} --strategies staged,tpe" in written
    assert "| staged, 4:30 | 1.3" in written
    assert "| attn 2 (cost-aware 16) |" in written
    assert "staged, 4:30 decodes 1.08× [1.08–1.08] as fast as tpe, 45:01: faster." in written
    assert "they agree within their intervals" in written
    assert "- tpe: no figure." in written
    assert "A round drafts 3.33 tokens" in written


def test_a_slower_early_draft_is_called_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_comparison(tmp_path, **{EARLY: 1.1})
    assert "as fast as tpe, 45:01: **slower**." in study(tmp_path, monkeypatch)


def test_the_winner_is_benched_on_further_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_comparison(tmp_path)
    asked: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        asked.append(command)
        common_bench(**{LATE: 1.15}).save(tmp_path / "builtin.json")

    import _study

    monkeypatch.setattr(_study, "run", run)
    written = study(tmp_path, monkeypatch, "--also", "builtin")
    assert len(asked) == 1
    assert asked[0][:2] == ("bench", str(tmp_path / "staged" / "skip.json"))
    assert {"--prompts", "builtin"} <= set(asked[0])
    assert "## The winner of staged on builtin" in written
    study(tmp_path, monkeypatch, "--also", "builtin")
    assert len(asked) == 1  # kept, not measured again


def test_an_unknown_strategy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--model", "m", "--out", str(tmp_path), "--strategies", "staged,best")
    with pytest.raises(UsageError, match="--strategies best: expected some of staged, tpe"):
        scripts_kit.run_script(monkeypatch, "study_search", *options)

"""``studies/qwen2.5-coder-1.5b-joint/gap.py``: where a draft's decode time goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scripts_kit
from tests.results_kit import bench_result
from tests.runs import paired_run

import gap  # isort: skip  # from beside its study, by scripts_kit


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


def test_benches_are_split_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts_kit.JOINT.is_dir()
    bench_result().save(tmp_path / "bench.json")
    gap.main([str(tmp_path / "bench.json")])
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'bench.json'}:\n- A round drafts")

"""The GPU script's dry mode: the code that a GPU would run, on tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfspec_tune.errors import UsageError
from tests.scripts_kit import SCRIPTS, load_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = SCRIPTS / "check_gpu"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_dry_mode_measures_everything_and_is_lossless(tiny_llama_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = _run(
        *("--dry", "--shapes", "qwen2.5-1.5b", "llama-2-13b", "--model", str(tiny_llama_dir)),
        *("--dtype", "float32", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["schema"], result["version"], result["dry"]) == ("selfspec-tune/gpu-check", 1, True)
    assert list(result["models"]) == [str(tiny_llama_dir), "qwen2.5-1.5b", "llama-2-13b"]
    assert result["left_out"] == []
    assert result["provenance"]["numerics"] == {"float32_matmul_precision": "highest", "tf32": False}
    for row in result["models"].values():
        assert list(row["steps"]) == ["empty", "half skipped", "int8", "int4"]
        assert row["eager_decode_seconds"] > 0
        for step in row["steps"].values():
            assert step["lossless"]["identical"] == 1
            assert step["decode_seconds"] > 0
            assert step["decode_percent_of_copy"] > 0
        shares = [step["draft_byte_share"] for step in row["steps"].values()]
        assert shares[0] == 1.0
        assert 1 > shares[1] > shares[2] * 0.5
        assert shares[2] > shares[3]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script's ``run`` in this process: the exit code that a command line gives."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        script = load_script("check_gpu")
        return int(script.run(script.options()))

    return run


def test_without_a_gpu_the_real_run_is_refused_with_the_remedy(tmp_path: Path, check: Callable[..., int]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(UsageError, match="Use --dry"):
        check("--out", str(tmp_path / "gpu.json"))


def test_no_time_leaves_models_out_by_name(tmp_path: Path, check: Callable[..., int]) -> None:
    out = tmp_path / "gpu.json"
    assert check("--dry", "--shapes", "llama-2-7b", "--minutes", "0", "--out", str(out)) == 0
    assert json.loads(out.read_text())["left_out"] == ["llama-2-7b"]

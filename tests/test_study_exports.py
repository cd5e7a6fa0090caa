"""``scripts/study_exports``: what it runs, and the tables of what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfspec_tune.errors import UsageError
from selfspec_tune.export.drafts import MANIFEST
from selfspec_tune.files import write_json_atomic
from selfspec_tune.provenance import collect
from selfspec_tune.results import RuntimeBench, SkipConfig, SkipLayers
from selfspec_tune.statistics import Interval
from tests import scripts_kit
from tests.results_kit import skip_config

RATIO = Interval(1.21, 1.15, 1.27)


def runtime_bench(runtime: str) -> RuntimeBench:
    return RuntimeBench(
        runtime=runtime,
        model="target",
        draft="draft",
        draft_tokens=4,
        decode_speedup=RATIO,
        end_to_end_speedup=RATIO,
        again=RATIO,
        tokens_per_second=10.0,
        acceptance_rate=0.5,
        mean_accepted_tokens=2.5,
        same_texts=31,
        num_prompts=32,
        provenance=collect(threads=2, seed=0, argv=["x"], runtime={"dtype": "bfloat16", "device": "cpu"}),
    )


class Commands:
    """Stands in for the program: leaves the files that each command would."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *command: str) -> None:
        self.asked.append(command)
        out = Path(command[command.index("--out") + 1])
        if command[0] == "search":
            skip_config().save(out / "skip.json")
        elif command[0] == "export":
            skip = SkipConfig.load(Path(command[1])).skip_set().to_dict()
            manifest = {"skip": skip, "draft_bytes": 50, "target_bytes": 100, "notes": ["Searched to stand alone."]}
            write_json_atomic(out / MANIFEST, manifest)
        else:
            runtime_bench(command[command.index("--runtime") + 1]).save(out)


def test_it_searches_exports_and_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _study

    commands = Commands()
    monkeypatch.setattr(_study, "run", commands)
    (tmp_path / "target.gguf").write_bytes(b"")
    skip_config().save(tmp_path / "shared.json")
    options = ["--model", "models/tiny", "--gguf", str(tmp_path / "target.gguf"), "--out", str(tmp_path / "study")]
    options += ["--shared", str(tmp_path / "shared.json")]
    for _ in range(2):
        assert scripts_kit.run_script(monkeypatch, "study_exports", *options) == 0
    assert [command[0] for command in commands.asked] == ["search", "export", "bench", "export", "bench", "bench"]
    assert {"--objective", "standalone", "--policy", "threshold"} <= set(commands.asked[0])
    assert {"gguf", "--gguf"} <= set(commands.asked[1])
    dtypes = [command[command.index("--dtype") + 1] for command in commands.asked[2:] if "--dtype" in command]
    assert dtypes == ["float32", "bfloat16"]
    assert "transformers-generate" in commands.asked[3]
    written = (tmp_path / "study" / "README.md").read_text()
    assert "## llamacpp, bfloat16, humaneval" in written
    assert "the draft is 50% of its bytes" in written
    assert "- Searched to stand alone." in written
    assert "| decode | 1.21× [1.15–1.27] |" in written
    assert "31 of 32" in written
    assert str(tmp_path) not in written
    skip_config(skip=SkipLayers(attention=[1], mlp=[])).save(tmp_path / "shared.json")
    with pytest.raises(UsageError, match="an export of another skip set"):
        scripts_kit.run_script(monkeypatch, "study_exports", *options)


def test_a_target_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model", "m", "--gguf", str(tmp_path / "none.gguf"), "--out", str(tmp_path / "study")]
    with pytest.raises(UsageError, match="there is no such file"):
        scripts_kit.run_script(monkeypatch, "study_exports", *options)

"""An exported draft benched in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.export import runtime_bench
from selfspec_tune.export.drafts import MANIFEST, export_draft
from selfspec_tune.export.runtime_bench import run_runtime_bench
from selfspec_tune.export.runtimes.llamacpp import Completion
from selfspec_tune.prompts import Prompt
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import DraftFormat, ExportRequest, PromptOptions, RuntimeBenchRequest
from selfspec_tune.results import RuntimeBench
from tests import kit
from tests.export.gguf_kit import save_gguf

PROMPTS = [Prompt(f"p{number}", "qa", f"text {number}") for number in range(6)]


class Timed:
    """Stands in for llama.cpp: with a draft twice as fast."""

    def __init__(self, target: Path, draft: Path | None = None, **_: object) -> None:
        self.has_draft = draft is not None

    def complete(self, prompt: list[int], num_tokens: int) -> Completion:
        asked.append((tuple(prompt), self.has_draft))
        seconds = 1.0 if self.has_draft else 2.0
        return Completion("abc", num_tokens, (), (), 8 * self.has_draft, 6 * self.has_draft, seconds, 0.5)


WARM_UPS = [((0,), False), ((0,), True)]  # of each engine, untimed
asked: list[tuple[tuple[int, ...], bool]] = []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GGUF export of a tiny model."""
    directory = kit.tiny_llama(tmp_path / "hf")
    target = save_gguf(directory, tmp_path / "target.gguf")
    skips = tmp_path / "skip_layers.json"
    skips.write_text(json.dumps({"tiny": {"attention": [2], "mlp": [1]}}))
    out = tmp_path / "draft"
    export_draft(ExportRequest(Path(f"{skips}#tiny"), DraftFormat.GGUF, out, "tiny", target, "f32", 3))
    return out


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setattr(runtime_bench, "LlamaCpp", Timed)
    prompts = [(prompt, [number]) for number, prompt in enumerate(PROMPTS)]
    monkeypatch.setattr(runtime_bench, "_prompts", lambda request, target, read: prompts)


@pytest.mark.usefixtures("timed")
def test_the_arms_take_turns_and_the_ratio_is_theirs(folder: Path) -> None:
    result = run_runtime_bench(RuntimeBenchRequest(folder, PromptOptions(max_new_tokens=16)), SilentReporter())
    assert result.decode_speedup.value == pytest.approx(2.0)
    assert result.end_to_end_speedup.value == pytest.approx(2.5 / 1.5)
    assert result.again.value == pytest.approx(1.0)
    assert (result.acceptance_rate, result.same_texts, result.num_prompts) == (0.75, 6, 6)
    assert result.mean_accepted_tokens == pytest.approx(16 / 10)
    assert result.draft_tokens == 3
    measured = asked[len(WARM_UPS) :]
    first = [has_draft for prompt, has_draft in measured[::3]]
    assert asked[: len(WARM_UPS)] == WARM_UPS
    assert len(measured) == 18
    assert set(first) == {False, True}  # no arm always begins


@pytest.mark.usefixtures("timed")
def test_what_was_measured_is_not_measured_again(folder: Path, tmp_path: Path) -> None:
    request = RuntimeBenchRequest(folder, PromptOptions(max_new_tokens=16), log=tmp_path / "runs.jsonl")
    first = run_runtime_bench(request, SilentReporter())
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:-5]) + "\n")
    asked.clear()
    again = run_runtime_bench(request, SilentReporter())
    assert len(asked) == len(WARM_UPS) + 5
    assert again.decode_speedup == first.decode_speedup


def test_what_is_no_export_for_llamacpp_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no selfspec-export\.json"):
        run_runtime_bench(RuntimeBenchRequest(tmp_path, PromptOptions()), SilentReporter())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": "nas"}))
    with pytest.raises(UsageError, match="an export to nas"):
        run_runtime_bench(RuntimeBenchRequest(folder, PromptOptions()), SilentReporter())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"gguf": "/nowhere.gguf"}))
    with pytest.raises(FileFormatError, match=r"target of .* is gone"):
        run_runtime_bench(RuntimeBenchRequest(folder, PromptOptions()), SilentReporter())


@pytest.mark.usefixtures("timed")
def test_the_command_prints_and_writes_the_result(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runtime.json"
    run = CliRunner().invoke(app, ["bench", str(folder), "--runtime", "llamacpp", "--out", str(out), "-q"])
    assert run.exit_code == 0, run.output
    assert "decode      2.00×" in run.output
    assert RuntimeBench.load(out).decode_speedup.value == pytest.approx(2.0)
    assert CliRunner().invoke(app, ["bench", "--runtime", "llamacpp"]).exit_code == 2

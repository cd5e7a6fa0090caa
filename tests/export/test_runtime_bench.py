"""An exported draft benched in its runtime."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.engine import Limits
from selfspec_tune.errors import ContextError, FileFormatError, UsageError
from selfspec_tune.export import runtime_bench
from selfspec_tune.export.folder import check_own_code
from selfspec_tune.export.formats import export_format
from selfspec_tune.export.runtime_bench import run_runtime_bench
from selfspec_tune.export.runtimes.completion import Completion
from selfspec_tune.export.write import export_draft
from selfspec_tune.intervals import Interval
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.prompts import Prompt
from selfspec_tune.provenance import collect
from selfspec_tune.report.bench import print_runtime_bench
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import ExportRequest, PromptOptions, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import MANIFEST, RuntimeBench
from tests import kit
from tests.export.gguf_kit import save_gguf
from tests.search_kit import Listener

LLAMACPP = RuntimeName.LLAMACPP
PROMPTS = [Prompt(f"p{number}", "qa", f"text {number}") for number in range(6)]


class Timed:
    """Stands in for a runtime: with a draft twice as fast."""

    name, target = "llama.cpp (xllamacpp 1)", "target.gguf"
    measured: ClassVar[dict[str, object]] = {"threads": 2}

    def read(self, prompt: Prompt) -> WorkItem:
        return WorkItem(prompt.id, prompt, (PROMPTS.index(prompt),), Limits(16))

    def answer(self, item: WorkItem, *, with_draft: bool) -> Completion:
        asked.append((item.tokens, with_draft))
        seconds = 1.0 if with_draft else 2.0
        return Completion("abc", item.limits.max_new_tokens, (), (), 8 * with_draft, 6 * with_draft, seconds, 0.5)


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
    export_draft(ExportRequest(Path(f"{skips}#tiny"), "gguf", out, "tiny", target, "f32", 3))
    return out


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setattr(runtime_bench, "open_runtime", lambda request, manifest, reporter: Timed())
    monkeypatch.setattr(runtime_bench, "_unread", lambda options, read, reporter: PROMPTS)


@pytest.mark.usefixtures("timed")
def test_the_arms_take_turns_and_the_ratio_is_theirs(folder: Path) -> None:
    result = run_runtime_bench(
        RuntimeBenchRequest(folder, LLAMACPP, PromptOptions(max_new_tokens=16)), SilentReporter()
    )
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
def test_answers_that_are_too_short_to_tell_or_degenerate_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Timed, item: WorkItem, *, with_draft: bool) -> Completion:
        number = item.tokens[0]
        said = (3, 9, *range(6)) if number < 2 else (7,) * 16 if number == 2 else tuple(range(16))
        return Completion("abc", len(said), said, (), 0, 0, 1.0, 0.5)

    monkeypatch.setattr(Timed, "answer", answer)
    request = RuntimeBenchRequest(folder, LLAMACPP, PromptOptions(max_new_tokens=16))
    result = run_runtime_bench(request, SilentReporter())
    assert (result.degenerate_share, result.num_too_short) == (pytest.approx(1 / 6), 2)
    console = Console(width=120, file=StringIO())
    print_runtime_bench(console, RuntimeBench.from_dict(result.to_dict(), origin="here"))
    page = console.file.getvalue()  # type: ignore[attr-defined]
    assert "without them; 2 too short to tell" in page
    assert page.count("over the target alone") == 2
    assert "decode      13.3 tokens/s, 13.3 by the target alone" in page


@pytest.mark.usefixtures("timed")
def test_what_was_measured_is_not_measured_again(folder: Path, tmp_path: Path) -> None:
    request = RuntimeBenchRequest(folder, LLAMACPP, PromptOptions(max_new_tokens=16), log=tmp_path / "runs.jsonl")
    first = run_runtime_bench(request, SilentReporter())
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:-5]) + "\n")
    asked.clear()
    again = run_runtime_bench(request, SilentReporter())
    assert len(asked) == len(WARM_UPS) + 5
    assert again.decode_speedup == first.decode_speedup


@pytest.mark.usefixtures("timed")
def test_a_prompt_that_does_not_fit_is_left_out_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, listener = Timed.read, Listener()

    def read_short(self: Timed, prompt: Prompt) -> WorkItem:
        if prompt == PROMPTS[0]:
            raise ContextError(f"Prompt {prompt.id} is too long.")
        return read(self, prompt)

    monkeypatch.setattr(Timed, "read", read_short)
    result = run_runtime_bench(RuntimeBenchRequest(folder, LLAMACPP, PromptOptions()), listener)
    assert {run.prompt_id for run in result.runs} == {prompt.id for prompt in PROMPTS[1:]}
    assert any("1 of 6 prompts do not fit" in notice for notice in listener.notices)


def test_what_is_no_export_for_llamacpp_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no selfspec-export\.json"):
        run_runtime_bench(RuntimeBenchRequest(tmp_path, LLAMACPP, PromptOptions()), SilentReporter())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": "nas"}))
    with pytest.raises(UsageError, match="an export to nas"):
        run_runtime_bench(RuntimeBenchRequest(folder, LLAMACPP, PromptOptions()), SilentReporter())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"gguf": "/nowhere.gguf"}))
    with pytest.raises(FileFormatError, match=r"target of .* is gone"):
        run_runtime_bench(RuntimeBenchRequest(folder, LLAMACPP, PromptOptions()), SilentReporter())


@pytest.mark.usefixtures("timed")
def test_the_command_prints_and_writes_the_result(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runtime.json"
    run = CliRunner().invoke(app, ["bench", str(folder), "--runtime", "llamacpp", "--out", str(out), "-q"])
    assert run.exit_code == 0, run.output
    assert "decode      2.00×" in run.output
    assert RuntimeBench.load(out).decode_speedup.value == pytest.approx(2.0)
    assert CliRunner().invoke(app, ["bench", "--runtime", "llamacpp"]).exit_code == 2


def test_what_only_our_engine_does_is_refused(folder: Path) -> None:
    for option, reason in ((("--policy", "fixed"), "this program's engine"), (("--dtype", "float32"), "the GGUF file")):
        run = CliRunner().invoke(app, ["bench", str(folder), "--runtime", "llamacpp", *option])
        assert run.exit_code == 2
        assert reason in " ".join(run.output.split())


@pytest.mark.parametrize("format_", ["transformers-generate", "hf-draft"])
def test_transformers_answers_as_it_does_alone(format_: str, tmp_path: Path) -> None:
    directory = kit.tiny_llama(tmp_path / "hf", context=4096)
    skips = tmp_path / "skip_layers.json"
    skips.write_text(json.dumps({"tiny": {"attention": [2], "mlp": [2]}}))
    out = tmp_path / "draft"
    export_draft(ExportRequest(Path(f"{skips}#tiny"), format_, out, str(directory), draft_tokens=3))
    prompts = PromptOptions(num_prompts=3, max_new_tokens=12)
    request = RuntimeBenchRequest(out, RuntimeName.TRANSFORMERS, prompts, "float32", "cpu")
    result = run_runtime_bench(request, SilentReporter())
    assert (result.same_texts, result.num_prompts) == (3, 3)
    assert result.acceptance_rate is not None
    assert all(run.drafted >= run.accepted >= 0 for run in result.runs)
    assert {run.drafted > 0 for run in result.runs if run.arm == "speculative"} == {True}
    assert {run.drafted for run in result.runs if run.arm != "speculative"} == {0}


@pytest.mark.usefixtures("timed")
def test_another_exports_answers_are_not_taken_for_this_ones(folder: Path, tmp_path: Path) -> None:
    request = RuntimeBenchRequest(folder, LLAMACPP, PromptOptions(max_new_tokens=16), log=tmp_path / "runs.jsonl")
    run_runtime_bench(request, SilentReporter())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"settings": {"exit_threshold": 0.5}}))
    with pytest.raises(UsageError, match=r"another measurement: export settings exit_threshold was 0\.0, is 0\.5"):
        run_runtime_bench(request, SilentReporter())


@pytest.mark.usefixtures("timed")
def test_a_log_that_is_none_or_damaged_is_refused(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    request = RuntimeBenchRequest(folder, LLAMACPP, PromptOptions(max_new_tokens=16), log=log)
    run_runtime_bench(request, SilentReporter())
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:2], '{"prompt_id": "p0"}', *lines[2:]]) + "\n")
    with pytest.raises(FileFormatError, match=r"line 3 is no answer of a bench: arm"):
        run_runtime_bench(request, SilentReporter())
    log.write_text("")  # of a disk that was full
    run_runtime_bench(request, SilentReporter())
    assert len(log.read_text().splitlines()) == len(lines)
    run_runtime_bench(request, SilentReporter())
    log.write_text(lines[0].replace("runtime-bench-log", "other") + "\n")
    with pytest.raises(FileFormatError, match="is no log of a bench"):
        run_runtime_bench(request, SilentReporter())


ENGINE_ONLY = (
    ("--rounds", "3"),
    ("--reference-prompts", "4"),
    ("--no-references",),
    ("--draft-model", "m"),
    ("--early-exit", "2"),
    ("--allow-calibration",),
    ("--sweep-values", "1,2"),
    ("--plot", "x.svg"),
    ("--trust-remote-code",),
    ("--allow-pickle",),
    ("--no-ngram",),
    ("--csv", "x.csv"),
)


@pytest.mark.parametrize("option", ENGINE_ONLY, ids=lambda option: option[0])
def test_no_option_is_ignored(option: tuple[str, ...], folder: Path) -> None:
    run = CliRunner().invoke(app, ["bench", str(folder), "--runtime", "llamacpp", *option])
    assert run.exit_code == 2
    assert f"{option[0].replace('--no-ngram', '--ngram')} is for a bench in this program's engine" in " ".join(
        run.output.split()
    )


def test_show_prints_a_bench_of_a_runtime(tmp_path: Path) -> None:
    ratio = Interval(1.21, 1.15, 1.27)
    RuntimeBench(
        runtime="llamacpp",
        model="target",
        draft="draft",
        draft_tokens=4,
        decode_speedup=ratio,
        end_to_end_speedup=ratio,
        again=ratio,
        tokens_per_second=10.0,
        acceptance_rate=0.5,
        mean_accepted_tokens=2.5,
        same_texts=31,
        num_prompts=32,
        provenance=collect(threads=2, seed=0, argv=["x"], runtime={"dtype": "bfloat16", "device": "cpu"}),
    ).save(tmp_path / "runtime.json")
    run = CliRunner().invoke(app, ["show", str(tmp_path / "runtime.json")])
    assert run.exit_code == 0, run.output
    assert "decode      1.21×" in run.output
    as_json = CliRunner().invoke(app, ["show", str(tmp_path / "runtime.json"), "--json"])
    assert json.loads(as_json.stdout)["same_texts"] == 31


@pytest.mark.parametrize("format_", ["transformers-generate", "nas"])
def test_code_that_no_export_wrote_is_not_run(format_: str, tmp_path: Path) -> None:
    directory = kit.tiny_llama(tmp_path / "hf")
    skips = tmp_path / "skip_layers.json"
    skips.write_text(json.dumps({"tiny": {"attention": [2], "mlp": [2]}}))
    out = tmp_path / "draft"
    export_draft(ExportRequest(skips, format_, out, str(directory)))
    check_own_code(out, export_format(format_))
    file = next(out.rglob("*.py"))
    code = file.read_text()
    file.write_text(code + "\nimport os\n")
    with pytest.raises(FileFormatError, match="no other code is run"):
        run_runtime_bench(RuntimeBenchRequest(out, RuntimeName.TRANSFORMERS, PromptOptions()), SilentReporter())
    file.write_text(code)
    (out / "more.py").write_text("")
    with pytest.raises(FileFormatError, match=r"more\.py is not what this version"):
        check_own_code(out, export_format(format_))
    (out / "more.py").unlink()
    if file.parent == out:
        file.unlink()
    else:
        (out / "custom_generate").rename(tmp_path / "elsewhere")
        (out / "custom_generate").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileFormatError, match="custom_generate is not what this version"):
            check_own_code(out, export_format(format_))
        (out / "custom_generate").unlink()
    with pytest.raises(FileFormatError, match=r"lacks .*Export it again"):
        check_own_code(out, export_format(format_))

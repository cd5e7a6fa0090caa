"""``selfspec-tune export`` as a user gives it: drafts, dialects, verification, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.export import verify
from selfspec_tune.export.runtimes import llamacpp
from selfspec_tune.export.verify import Verification
from selfspec_tune.export.write import MANIFEST
from selfspec_tune.requests import DraftFormat
from selfspec_tune.results import SkipConfig
from tests import kit
from tests.export.gguf_kit import save_gguf

WHOLE = SkipSet(4, (1,), (1,))


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def said(run: Result) -> str:
    return " ".join(run.output.split())


@pytest.fixture
def source(tiny_llama_dir: Path, skip_file: Callable[..., Path]) -> Path:
    """A skip.json that was searched to share the model's cache."""
    return skip_file(tiny_llama_dir, WHOLE)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context holds the prompts of the built-in set."""
    return kit.tiny_llama(tmp_path_factory.mktemp("long"), context=4096)


@pytest.mark.parametrize("format_", DraftFormat)
def test_a_draft_is_written_and_verified(
    format_: DraftFormat, long_model: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, options = tmp_path / "draft", ["--model", long_model]
    if format_ is DraftFormat.GGUF:
        options = ["--gguf", save_gguf(long_model, tmp_path / "target.gguf"), "--weights", "f32"]
    run = export(skip_file(long_model, WHOLE), "--to", format_, *options, "--out", out, "--draft-tokens", 3, "--verify")
    assert run.exit_code == 0, run.output
    text = said(run)
    assert "4 of 4 answers are the target's own" in text
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["verified"]["verdict"] == "exact"
    assert manifest["verified"]["drafted"] == manifest["verified"]["expected_drafted"] > 0
    assert manifest["draft_tokens"] == 3
    for line in manifest["launch"].values():
        assert line in run.output


def test_a_shared_set_is_exported_with_a_warning(source: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    options = ("--to", "hf-draft", "--model", tiny_llama_dir, "--out")
    unknown = export(source, *options, tmp_path / "unknown")
    assert "searched to share the model's cache" in said(unknown)
    assert "not known. A bench with --runtime measures it" in said(unknown)
    config = SkipConfig.load(source)
    alone = {"decode_speedup": 0.93, "acceptance_rate": 0.17, "draft_tokens": 5, "windows": 3}
    config.model_copy(update={"provenance": {"search": {"standalone": alone}}}).save(source)
    predicted = export(source, *options, tmp_path / "predicted")
    assert "predicted to decode 0.93x as fast as the model alone, drafting 5 tokens of which 17% are" in said(predicted)
    assert json.loads((tmp_path / "predicted" / MANIFEST).read_text())["draft_tokens"] == 5


def test_a_standalone_set_says_what_was_measured_and_what_is_lost(
    source: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    config = SkipConfig.load(source)
    draft = config.draft.model_copy(update={"policy": "threshold", "exit_threshold": 0.6, "precision": "int4"})
    config.model_copy(update={"objective": "standalone", "draft": draft}).save(source)
    run = export(source, "--to", "nas", "--model", tiny_llama_dir, "--out", tmp_path / "draft")
    text = said(run)
    assert "Searched to stand alone" in text
    assert "Searched with low-precision copies, which no export carries" in text
    assert "assistant_confidence_threshold=0.6" in text
    assert "of these runtimes only transformers does" in text
    assert json.loads((tmp_path / "draft" / MANIFEST).read_text())["settings"] == {"exit_threshold": 0.6}


def test_json_is_the_manifest(source: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    run = export(source, "--to", "nas", "--model", tiny_llama_dir, "--out", tmp_path / "draft", "--json")
    assert json.loads(run.stdout) == json.loads((tmp_path / "draft" / MANIFEST).read_text())


def test_a_draft_that_computes_something_else_fails(
    source: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Verification("some runtime", 4, 100, 40, 3.0, 4, 90, 10, 90, 40)
    monkeypatch.setattr(verify, "verify_export", lambda *_: wrong)
    run = export(source, "--to", "nas", "--model", tiny_llama_dir, "--out", tmp_path / "draft", "--verify")
    assert run.exit_code == 1
    assert "some runtime: different" in said(run)
    assert "Do not serve it" in said(run)


def test_without_the_runtime_nothing_is_written(
    long_model: Path, skip_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    target = save_gguf(long_model, tmp_path / "target.gguf")
    run = export(
        skip_file(long_model, WHOLE), "--to", "gguf", "--gguf", target, "--out", tmp_path / "draft", "--verify"
    )
    assert run.exit_code == 2
    assert f"pip install 'selfspec-tune[{llamacpp.EXTRA}]'" in said(run)
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--to", "vllm", "--out", "x"], "--to 'vllm' is no format; expected one of self-sd"),
        (["--to", "nas"], "name it with --out DIR"),
        (["--to", "nas", "--out", "x", "--gguf", "f"], "--to nas is made from the checkpoint, so --gguf means nothing"),
        (["--to", "nas", "--out", "x", "--weights", "f16"], "so --weights means nothing"),
        (["--to", "nas", "--out", "x", "--task", "qa"], "holds one draft for all tasks"),
        (["--to", "gguf", "--out", "x"], "give it with --gguf FILE"),
        (["--to", "gguf", "--out", "x", "--gguf", "f", "--weights", "q2"], "--weights q2: expected copy, f32"),
        (["--to", "nas", "--out", "x", "--draft-tokens", "0"], "--draft-tokens 0: expected at least 1"),
        (["--to", "self-sd", "--verify"], "writes a file of skips alone, so --verify means nothing"),
        (["--to", "self-sd", "--force"], "name it with --out, or leave --force out"),
    ],
)
def test_what_means_nothing_is_refused(
    options: list[str], reason: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = export(source, *options)
    assert run.exit_code == 2
    assert reason in said(run)
    assert not Path("x").exists()


def test_a_dialects_file_is_replaced_only_by_force_and_never_the_source(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "skip_layers.json"
    first = export(source, "--to", "self-sd", "--out", out, "--json")
    assert json.loads(first.stdout) == json.loads(out.read_text())
    assert "--force to replace it" in said(export(source, "--to", "self-sd", "--out", out))
    assert export(source, "--to", "self-sd", "--out", out, "--force").exit_code == 0
    before = source.read_bytes()
    run = export(source, "--to", "self-sd", "--out", source, "--force")
    assert run.exit_code == 2
    assert "would be lost" in said(run)
    assert source.read_bytes() == before
    run = export(tmp_path / "typo.json", "--to", "self-sd", "--out", out, "--force")
    assert run.exit_code in (1, 2)
    assert "typo.json does not exist. Check the path" in said(run)


def test_a_folder_with_a_hash_in_its_name_is_a_folder(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "runs#1"
    folder.mkdir()
    file = skip_file(tiny_llama_dir, WHOLE).rename(folder / "skip.json")
    run = export(file, "--to", "hf-draft", "--model", tiny_llama_dir, "--out", tmp_path / "draft", "--json")
    manifest: dict[str, Any] = json.loads(run.stdout)
    assert any("share the model's cache" in note for note in manifest["notes"])


def test_a_gguf_file_says_which_model_it_is(long_model: Path, tmp_path: Path) -> None:
    target, skips = save_gguf(long_model, tmp_path / "target.gguf"), tmp_path / "skip_layers.json"
    skips.write_text('{"tiny": {"attention": [1], "mlp": [1]}}')
    run = export(skips, "--to", "gguf", "--gguf", target, "--out", tmp_path / "draft")
    assert run.exit_code == 0, run.output
    nameless = export(skips, "--to", "nas", "--out", tmp_path / "nas")
    assert nameless.exit_code == 2
    assert "does not say which model it is for" in said(nameless)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    run = export(tmp_path / "typo.json", "--to", "nas", "--out", tmp_path / "draft")
    assert run.exit_code == 2
    assert "typo.json does not exist. Check the path" in said(run)


def test_a_link_into_the_hub_s_cache_is_exported_and_verified(
    long_model: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    blob, link = save_gguf(long_model, tmp_path / "9f86d081884c7d65"), tmp_path / "target-F32.gguf"
    link.symlink_to(blob)
    options = ("--to", "gguf", "--gguf", link, "--weights", "f32", "--out", tmp_path / "draft", "--verify")
    run = export(skip_file(long_model, WHOLE), *options)
    assert run.exit_code == 0, run.output
    assert f"-m {link} " in said(run)
    assert json.loads((tmp_path / "draft" / MANIFEST).read_text())["verified"]["verdict"] == "exact"


def test_an_export_is_of_the_commit_that_was_searched(
    hub_cache: Path, tiny_llama_dir: Path, source: Path, tmp_path: Path
) -> None:
    searched = kit.plant_in_hub_cache(hub_cache, "someone/tiny", tiny_llama_dir, seed="first").name
    other = kit.tiny_llama(tmp_path / "other", seed=5)
    latest = kit.plant_in_hub_cache(hub_cache, "someone/tiny", other, seed="second").name
    config = SkipConfig.load(source)
    about = {"id": "someone/tiny", "source": "hub", "revision": searched}
    config.model_copy(update={"model": config.model.model_copy(update=about)}).save(source)
    run = export(source, "--to", "hf-draft", "--out", tmp_path / "draft")
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "draft" / MANIFEST).read_text())["revision"] == searched
    run = export(source, "--to", "hf-draft", "--revision", latest, "--out", tmp_path / "latest")
    assert run.exit_code == 2
    assert "another model" in said(run)

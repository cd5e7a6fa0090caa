"""The registry of export formats, and one that a test adds to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import selfspec_tune
from selfspec_tune.cli.app import app
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SkipSetError, UsageError
from selfspec_tune.export.formats import FORMATS, export_format
from selfspec_tune.export.runtime_bench import run_runtime_bench
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import PromptOptions, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import MANIFEST, ExportManifest
from tests import kit

BENCH = PromptOptions(num_prompts=1, max_new_tokens=8)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the toy: one line."""
    monkeypatch.setitem(FORMATS, "toy", "tests.export.toy_format")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose context holds the prompts of the built-in set."""
    return kit.tiny_llama(tmp_path_factory.mktemp("toy"), context=4096)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_registered_by_its_own_name(name: str) -> None:
    found = export_format(name)
    assert found.name == name
    assert found.about
    assert found.files


def test_what_is_not_registered_is_refused_with_what_is(toy: None) -> None:
    with pytest.raises(UsageError, match=r"'vllm' is no format; expected one of hf-draft, .*, toy"):
        export_format("vllm")
    refused = run("export", "skip.json", "--to", "vllm")
    assert refused.exit_code == 2
    assert "toy" in refused.output
    with pytest.raises(UsageError, match=r"expected one of .*, toy"):
        selfspec_tune.export("skip.json", "vllm", out="x")


@pytest.mark.usefixtures("toy")
def test_a_format_that_a_line_registers_is_exported_verified_shown_benched_and_replaced(
    model: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "draft"
    command = ("export", skip_file(model, SkipSet(4, (1,), (1,))), "--to", "toy", "--model", model, "--out", out)
    made = run(*command, "--draft-tokens", 3, "--verify")
    assert made.exit_code == 0, made.output
    assert "exact" in made.output
    manifest = ExportManifest.load(out / MANIFEST)
    assert (manifest.format, manifest.draft_tokens, len(manifest.layers)) == ("toy", 3, 3)
    assert "about/toy.txt" in manifest.files
    for place in (out, out / MANIFEST):
        shown = run("show", place)
        assert shown.exit_code == 0, shown.output
        assert shown.output in made.output
    assert run("show", out, "--model", model).output == run("show", out).output
    as_json = run("show", out, "--json")
    assert json.loads(as_json.stdout) == json.loads((out / MANIFEST).read_text())
    request = RuntimeBenchRequest(out, RuntimeName.TRANSFORMERS, BENCH, "float32", "cpu")
    assert run_runtime_bench(request, SilentReporter()).same_texts == 1
    with pytest.raises(UsageError, match="an export to toy; `runtime` llamacpp takes those to gguf"):
        run_runtime_bench(RuntimeBenchRequest(out, RuntimeName.LLAMACPP, BENCH), SilentReporter())
    assert run(*command, "--force").exit_code == 0


@pytest.mark.usefixtures("toy")
def test_a_format_refuses_in_its_own_words(model: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    file = skip_file(model, SkipSet(4, (0, 1, 2), (0, 1, 2)))
    with pytest.raises(SkipSetError, match="toy: expected two layers"):
        selfspec_tune.export(file, "toy", out=tmp_path / "draft", model=str(model))
    refused = run("export", file, "--to", "toy", "--model", model, "--out", tmp_path / "draft", "--revision", "main")
    assert refused.exit_code == 2
    assert "--to toy is made from a box of bricks, so --revision means nothing" in " ".join(refused.output.split())


@pytest.mark.parametrize("options", [{"gguf": Path("f")}, {"weights": "f16"}])
def test_from_python_too_an_option_that_means_nothing_is_refused(
    options: dict[str, object], model: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = skip_file(model, SkipSet(4, (1,), (1,)))
    with pytest.raises(UsageError, match=f"`{next(iter(options))}` means nothing"):
        selfspec_tune.export(file, "nas", out=tmp_path / "draft", model=str(model), **options)
    assert not (tmp_path / "draft").exists()

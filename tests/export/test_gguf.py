"""Drafts for llama.cpp, in llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, RopeScalingType
from gguf.quants import dequantize

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SkipSetError, UnsupportedModelError
from selfspec_tune.export.formats import gguf as gguf_export
from selfspec_tune.export.formats.gguf import FILE, FORMAT
from selfspec_tune.export.formats.gguf_file import GgufFile, GgufTarget, MetadataEntry, full, write_gguf_file
from selfspec_tune.export.job import Job
from selfspec_tune.export.runtimes.llamacpp import LlamaCpp, LlamaCppPair
from selfspec_tune.export.simulation import server_loop
from selfspec_tune.export.verify import along
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.results.export_manifest import EXACT_LOGPROB
from tests import kit
from tests.engine_kit import prompt_tokens
from tests.export.gguf_kit import save_gguf
from tests.export.sets import SINGLE

SETS = SINGLE | {
    "nothing": SkipSet.empty(4),
    "whole layers": SkipSet(4, (1, 3), (1, 3)),
    "sub-layers that make a layer": SkipSet(4, (2,), (1,)),
    "many": SkipSet(4, (0, 3), (1, 2)),
}
NUM_TOKENS, DRAFT_TOKENS = 24, 3


@pytest.fixture(scope="module", params=["llama", "qwen2", "llama, tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    folder = tmp_path_factory.mktemp("model")
    make = kit.tiny_qwen2 if request.param == "qwen2" else kit.tiny_llama
    directory = make(folder / "hf", tied="tied" in request.param, seed=3)
    return load_model(str(directory), dtype="float32", device="cpu"), save_gguf(directory, folder / "target.gguf")


def written(target: Path, skip_set: SkipSet, folder: Path, weights: str = "f32") -> Path:
    folder.mkdir(exist_ok=True)
    FORMAT.write(Job(skip_set, GgufTarget("tiny", target), weights, DRAFT_TOKENS), folder, folder)
    return folder / FILE


@pytest.mark.parametrize("name", SETS)
def test_llamacpp_computes_and_drafts_as_we_do(name: str, model: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    loaded, target = model
    pair = LlamaCppPair(target, written(target, SETS[name], tmp_path / "draft"), DRAFT_TOKENS)
    prompt = prompt_tokens(20, seed=4)
    alone = pair.draft_alone(prompt, NUM_TOKENS)
    choices, logprobs = along(loaded, SETS[name], prompt, alone.tokens)
    assert choices == list(alone.tokens)
    assert torch.allclose(torch.tensor(logprobs), torch.tensor(alone.logprobs), atol=EXACT_LOGPROB)
    together = pair.speculative(prompt, NUM_TOKENS)
    assert together.tokens == pair.plain(prompt, NUM_TOKENS).tokens
    simulate = server_loop(loaded, SETS[name], DRAFT_TOKENS, first_is_plain=True)
    assert (together.drafted, together.accepted) == simulate(prompt, together.tokens, NUM_TOKENS)


def test_an_ffn_of_width_zero_would_lose_its_attention(
    model: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Why a layer without MLP gets one that adds nothing: with none llama.cpp leaves the attention out as well.
    loaded, target = model
    skip_set, prompt = SETS["an MLP"], prompt_tokens(20, seed=4)
    monkeypatch.setattr(gguf_export, "_EMPTY_FFN", 0)
    monkeypatch.setattr(gguf_export, "_empty_ffn", lambda source, prefix: iter(()))
    trapped = LlamaCpp(written(target, skip_set, tmp_path / "trap"), is_exact=True)
    alone = trapped.complete(prompt, NUM_TOKENS)
    _, meant = along(loaded, skip_set, prompt, alone.tokens)
    _, without = along(loaded, SkipSet(4, (1,), (1,)), prompt, alone.tokens)
    assert not torch.allclose(torch.tensor(meant), torch.tensor(alone.logprobs), atol=0.05)
    assert torch.allclose(torch.tensor(without), torch.tensor(alone.logprobs), atol=EXACT_LOGPROB)


@pytest.mark.parametrize(("weights", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("copy", "F32")])
def test_weights_come_in_the_format_that_was_asked_for(
    weights: str, kind: str, model: tuple[LoadedModel, Path], tmp_path: Path
) -> None:
    draft = GgufFile(written(model[1], SETS["an MLP"], tmp_path / "draft", weights))
    assert draft.tensors["blk.0.attn_q.weight"].tensor_type == GGMLQuantizationType[kind]
    assert draft.tensors["blk.0.attn_norm.weight"].tensor_type == GGMLQuantizationType.F32
    for name in ("token_embd.weight", "blk.2.ffn_down.weight"):
        stored, own = (file.tensors[name] for file in (draft, GgufFile(model[1])))
        rows, exact = (dequantize(tensor.data, tensor.tensor_type) for tensor in (stored, own))
        assert np.allclose(rows, exact, rtol={"f16": 2**-11, "bf16": 2**-8, "copy": 0}[weights], atol=1e-6)


def test_whole_layers_keep_the_architecture(model: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    _, target = model
    native = GgufFile(written(target, SETS["sub-layers that make a layer"], tmp_path / "whole"))
    assert (native.architecture, native.num_layers) == (GgufFile(target).architecture, 3)
    deci = GgufFile(written(target, SETS["the first attention"], tmp_path / "deci"))
    assert deci.architecture == "deci"
    assert deci.own("attention.head_count") == [1, 4, 4, 4]


def test_a_file_of_another_depth_or_none_is_refused(model: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    with pytest.raises(SkipSetError, match="has 4 layers, the skip set is for a model of 6"):
        written(model[1], SkipSet(6, (1,)), tmp_path / "draft")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model[1].read_bytes()[:500])
    with pytest.raises(FileFormatError, match="no complete GGUF file"):
        written(cut, SETS["an MLP"], tmp_path / "draft")


def test_an_architecture_of_another_graph_keeps_its_layers_whole(
    model: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "_INTERLEAVED", {"other": True})
    with pytest.raises(UnsupportedModelError, match="cannot be left out singly"):
        written(model[1], SETS["an attention"], tmp_path / "draft")
    assert written(model[1], SETS["whole layers"], tmp_path / "draft").exists()
    shutil.rmtree(tmp_path / "draft")


@pytest.mark.parametrize("kind", ["gemma3", "smollm3", "deepseek2"])
def test_layers_that_go_by_their_place_are_refused(
    kind: str, model: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GgufFile, "architecture", kind)
    monkeypatch.setattr(GgufFile, "num_layers", 4)
    with pytest.raises(UnsupportedModelError, match=rf"architecture {kind}.*by their place.*`to` hf-draft"):
        written(model[1], SETS["whole layers"], tmp_path / "draft")


def test_a_window_is_refused(model: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = GgufFile.own
    monkeypatch.setattr(
        GgufFile,
        "own",
        lambda file, name, default=None: 32 if name == "attention.sliding_window" else own(file, name, default),
    )
    with pytest.raises(UnsupportedModelError, match="looks back over a window"):
        written(model[1], SETS["whole layers"], tmp_path / "draft")


def test_empty_lists_of_a_file_are_left_out(model: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    piece = full("blk.0.attn_norm.weight", (4,), 1.0)
    entries = {
        "general.name": MetadataEntry("tiny", GGUFValueType.STRING),
        "tokenizer.ggml.merges": MetadataEntry([], GGUFValueType.ARRAY, GGUFValueType.STRING),
    }
    write_gguf_file(tmp_path / "some.gguf", "llama", entries, [piece], "copy")
    assert "tokenizer.ggml.merges" not in GgufFile(tmp_path / "some.gguf").entries


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_scaled_positions_are_those_that_llamacpp_computes(kind: str, tmp_path: Path) -> None:
    directory = kit.tiny_llama(tmp_path / "hf", seed=3)

    def also(writer: GGUFWriter) -> None:
        if kind == "llama3":  # the rule with factor 8 from a context of 64 on, for heads of 16 and theta 10 000
            wavelengths = 2 * np.pi * 10000.0 ** (np.arange(0, 16, 2) / 16)
            smooth = np.clip((64 / wavelengths - 1) / 3, 0, 1)
            writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32))
            return
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)

    file = save_gguf(directory, tmp_path / "scaled.gguf", also)
    scaled, plain = (load_model(str(name), dtype="float32", device="cpu") for name in (file, directory))
    prompt = prompt_tokens(150, seed=4)
    said = LlamaCpp(file, is_exact=True).complete(prompt, NUM_TOKENS)
    choices, logprobs = along(scaled, SkipSet.empty(4), prompt, said.tokens)
    assert choices == list(said.tokens)
    assert torch.allclose(torch.tensor(logprobs), torch.tensor(said.logprobs), atol=EXACT_LOGPROB)
    assert not torch.allclose(
        torch.tensor(along(plain, SkipSet.empty(4), prompt, said.tokens)[1]), torch.tensor(said.logprobs), atol=0.05
    )

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError
from selfspec_tune.export.formats.gguf_file import GgufFile
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.gguf import check_gguf_read
from selfspec_tune.models.gguf_header import QuickReader
from tests import kit


@pytest.fixture(scope="module")
def gguf_file(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny_gguf(tiny_llama_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_computes_what_its_checkpoint_does(gguf_file: Path, tiny_llama_dir: Path) -> None:
    original = load_model(str(tiny_llama_dir), dtype="float32", device="cpu")
    loaded = load_model(str(gguf_file), dtype="float32", device="cpu")
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, original.model(tokens).logits)
    assert loaded.fingerprint == original.fingerprint


def test_auto_gives_what_was_quantised_two_bytes_on_any_cpu(gguf_file: Path) -> None:
    assert load_model(str(gguf_file), device="cpu").dtype is torch.bfloat16


def test_the_description_says_that_it_was_dequantised(gguf_file: Path) -> None:
    description = load_model(str(gguf_file), dtype="float32", device="cpu").describe()
    assert description["source"] == "gguf"
    assert description["id"] == str(gguf_file)
    assert description["provenance"] == "gguf, dequantised, ALL_F32"


def test_a_model_from_gguf_can_be_saved_and_loaded_again(gguf_file: Path, tmp_path: Path) -> None:
    loaded = load_model(str(gguf_file), dtype="bfloat16", device="cpu")
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    assert again.fingerprint == loaded.fingerprint
    assert again.tokenizer("the end").input_ids == loaded.tokenizer("the end").input_ids


@pytest.mark.parametrize("read", [GgufFile, lambda path: load_model(str(path), device="cpu")], ids=["export", "load"])
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((1).to_bytes(4, "little"), r"version 1, .*of 2023.*expected version 2 or 3.*convert_hf_to_gguf\.py"),
        ((99).to_bytes(4, "little"), r"version 99, which gguf \d.*expected version 2 or 3.*pip install --upgrade gguf"),
        ((3).to_bytes(4, "big"), r"big-endian .*gguf-convert-endian .*odd\.gguf little"),
        ((0).to_bytes(4, "big"), r"no complete GGUF file \(its version is 0\)"),
    ],
)
def test_a_version_that_is_not_read_says_which_and_what_to_do(
    gguf_file: Path, tmp_path: Path, version: bytes, message: str, read: Callable[[Path], object]
) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(b"GGUF" + version + gguf_file.read_bytes()[8:])
    with pytest.raises(FileFormatError, match=message):
        read(odd)


@pytest.mark.parametrize("keep", [0, 5, 20_000])
def test_a_torn_gguf_file_is_refused(gguf_file: Path, tmp_path: Path, keep: int) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="no complete GGUF file"):
        load_model(str(torn), dtype="float32", device="cpu")


def test_an_architecture_that_gguf_cannot_give_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_file.read_bytes().replace(b"llama", b"zzzzz"))
    with pytest.raises(
        UnsupportedModelError, match=r"reads no GGUF files of architecture 'zzzzz'.*original checkpoint"
    ):
        load_model(str(other), dtype="float32", device="cpu")


def test_what_transformers_trips_over_is_said_in_our_words(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("llama.embedding_length")
        writer.add_embedding_length(32)

    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "odd.gguf", also)
    with pytest.raises(UnsupportedModelError, match=r"Its tensors have other shapes than its keys state\."):
        load_model(str(file), device="cpu")


@pytest.mark.parametrize("key", ["padding", "eos"])
def test_a_token_beyond_the_vocabulary_of_a_gguf_file_is_named(tiny_llama_dir: Path, tmp_path: Path, key: str) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}_token_id", None)
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", 99_999)

    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "odd.gguf", also)
    with pytest.raises(FileFormatError, match=rf"token 99999 as its tokenizer\.ggml\.{key}_token_id, .* \d+ tokens"):
        load_model(str(file), device="cpu")


def test_an_architecture_s_own_padding_token_may_be_beyond_the_vocabulary(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "small.gguf", architecture="phi3")
    with pytest.raises(SelfSpecError) as refused:  # its tensors are another architecture's
        load_model(str(file), device="cpu")
    assert "adding_idx" not in str(refused.value)


ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, its magnitude given": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.5 * (0.1 * np.log(8.0) + 1),
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama3, of an uncommon length": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 100,
    },
}


def rotated(checkpoint: Path, directory: Path, rotation: dict[str, Any]) -> LoadedModel:
    """A copy of the checkpoint whose positions are scaled."""
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10000.0} | rotation
    (directory / "config.json").write_text(json.dumps(config))
    return load_model(str(directory), dtype="float32", device="cpu")


def as_llamacpp_writes_it(original: LoadedModel, rotation: dict[str, Any]) -> Callable[[gguf.GGUFWriter], None]:
    """Adds what the converter makes of a scaling: keys, or for Llama 3's rule a tensor of factors."""

    def also(writer: gguf.GGUFWriter) -> None:
        if rotation["rope_type"] == "llama3":
            frequencies = original.model.base_model.rotary_emb.inv_freq.numpy()
            plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
            writer.add_tensor("rope_freqs.weight", (plain / frequencies).astype(np.float32))
            return
        writer.add_rope_scaling_type(gguf.RopeScalingType(rotation["rope_type"]))
        writer.add_rope_scaling_factor(rotation["factor"])
        if "original_max_position_embeddings" in rotation:
            writer.add_rope_scaling_orig_ctx_len(rotation["original_max_position_embeddings"])
        if "attention_factor" in rotation:
            writer.add_rope_scaling_attn_factors(1.5)

    return also


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_gguf_file_with_scaled_positions_computes_what_its_checkpoint_does(
    tiny_llama_dir: Path, tmp_path: Path, name: str
) -> None:
    rotation = ROTATIONS[name]
    original = rotated(tiny_llama_dir, tmp_path / "model", rotation)
    also = as_llamacpp_writes_it(original, rotation)
    file = kit.tiny_gguf(tmp_path / "model", tmp_path / "scaled.gguf", also)
    loaded = load_model(str(file), dtype="float32", device="cpu")
    tokens = torch.arange(300)[None] % 120
    torch.testing.assert_close(loaded.model(tokens).logits, original.model(tokens).logits, atol=1e-3, rtol=1e-3)
    plain = load_model(str(tiny_llama_dir), dtype="float32", device="cpu").model(tokens).logits
    assert (plain - original.model(tokens).logits).abs().max() > 0.1  # the scaling matters
    assert loaded.fingerprint == original.fingerprint or "attention_factor" in rotation
    assert loaded.provenance.endswith(f"rotary scaling {rotation['rope_type']} {rotation['factor']:g}")


def test_a_scaling_that_llamacpp_ignores_is_ignored(tiny_llama_dir: Path, tmp_path: Path, gguf_file: Path) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(4.0)
        writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))

    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "none.gguf", also)
    loaded = load_model(str(file), dtype="float32", device="cpu")
    assert loaded.fingerprint == load_model(str(gguf_file), dtype="float32", device="cpu").fingerprint


def _longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_factors_long.weight", np.full(8, 2, dtype=np.float32))
    writer.add_tensor("rope_factors_short.weight", np.ones(8, dtype=np.float32))


REFUSED: dict[str, Callable[[gguf.GGUFWriter], None]] = {
    "longrope": _longrope,
    "unknown type": lambda writer: writer.add_string("llama.rope.scaling.type", "spiral"),
    "longrope, type alone": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
    "factors of no rule": lambda writer: writer.add_tensor(
        "rope_freqs.weight", np.linspace(1, 3, 8, dtype=np.float32)[::-1].copy()
    ),
    "factors for another head": lambda writer: writer.add_tensor(
        "rope_freqs.weight", np.array([1, 1, 2, 8], dtype=np.float32)
    ),
    "scaled magnitude without yarn": lambda writer: writer.add_rope_scaling_attn_factors(1.5),
    "yarn, mixed otherwise": lambda writer: (
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        writer.add_float32("llama.rope.scaling.yarn_ext_factor", 0.5),
    )[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_scaling_that_transformers_has_no_rule_for_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, name: str
) -> None:
    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "odd.gguf", REFUSED[name])
    with pytest.raises(UnsupportedModelError, match=r"another model than llama\.cpp serves\. Give the original"):
        load_model(str(file), dtype="float32", device="cpu")


def _relabelled(source: Path, target: Path, label: int) -> Path:
    """A copy that states another ``general.file_type``."""
    data = bytearray(source.read_bytes())
    key = b"general.file_type"
    at = data.index(key) + len(key) + 4  # after the value's own type
    data[at : at + 4] = struct.pack("<I", label)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("label", [41, 150, 10_000])
def test_an_unknown_file_type_is_only_a_label(gguf_file: Path, tmp_path: Path, label: int) -> None:
    loaded = load_model(str(_relabelled(gguf_file, tmp_path / "new.gguf", label)), dtype="float32", device="cpu")
    assert loaded.provenance == f"gguf, dequantised, type {label}"
    assert loaded.fingerprint == load_model(str(gguf_file), dtype="float32", device="cpu").fingerprint


def test_sizes_far_beyond_the_file_are_refused_before_they_are_made(gguf_file: Path, tmp_path: Path) -> None:
    data = bytearray(gguf_file.read_bytes())
    key = b"llama.feed_forward_length"
    at = data.index(key) + len(key) + 4  # after the value's own type
    data[at : at + 4] = struct.pack("<I", 2**30)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    with pytest.raises(FileFormatError, match=rf"states the sizes of .*, and there are {len(data):,} bytes"):
        load_model(str(damaged), dtype="float32", device="cpu")


def _with_tensor_type(source: Path, target: Path, kind: int) -> Path:
    """A copy whose last norm is said to be of another type."""
    data = bytearray(source.read_bytes())
    name = b"output_norm.weight"
    at = data.index(name) + len(name)
    (dimensions,) = struct.unpack_from("<I", data, at)
    at += 4 + 8 * dimensions
    data[at : at + 4] = struct.pack("<I", kind)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("read", [GgufFile, lambda path: load_model(str(path), device="cpu")], ids=["export", "load"])
def test_an_unknown_tensor_type_names_type_package_and_remedy(
    gguf_file: Path, tmp_path: Path, read: Callable[[Path], object]
) -> None:
    new = _with_tensor_type(gguf_file, tmp_path / "new.gguf", 150)
    with pytest.raises(FileFormatError, match=r"tensors of type 150, which gguf \d.*pip install --upgrade gguf"):
        read(new)


def test_a_tensor_type_that_is_known_and_cannot_be_unpacked_says_so(gguf_file: Path, tmp_path: Path) -> None:
    new = _with_tensor_type(gguf_file, tmp_path / "new.gguf", gguf.GGMLQuantizationType.I32)
    with pytest.raises(UnsupportedModelError, match=r"Dequantization for I32 .* in gguf \d.*Q8_0"):
        load_model(str(new), device="cpu")


def _empty(path: Path, architecture: str, also: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NO_MODELS: dict[str, tuple[str, Callable[[gguf.GGUFWriter], None], str]] = {
    "vocabulary": ("llama", lambda writer: writer.add_block_count(4), "a vocabulary and no weights"),
    "projector": ("clip", lambda writer: writer.add_type("mmproj"), "the projector of a multimodal model"),
    "old projector": ("clip", lambda writer: writer.add_block_count(4), "the projector of a multimodal model"),
    "adapter": ("llama", lambda writer: writer.add_type("adapter"), "a LoRA adapter. Merge it"),
    "part": ("llama", lambda writer: writer.add_uint16("split.count", 2), "one of 2 files of a split model. Merge"),
}


@pytest.mark.parametrize("read", [GgufFile, lambda path: load_model(str(path), device="cpu")], ids=["export", "load"])
@pytest.mark.parametrize("name", NO_MODELS)
def test_a_gguf_file_of_something_else_is_refused_by_what_it_is(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    architecture, also, reason = NO_MODELS[name]
    with pytest.raises(FileFormatError, match=reason):
        read(_empty(tmp_path / "other.gguf", architecture, also))


def test_missing_weights_of_a_gguf_file_are_refused_not_made_up(gguf_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_file.read_bytes().replace(b"blk.3.attn_q.weight", b"blk.3.attn_z.weight"))
    with pytest.raises(FileFormatError, match="lacks 1 of the model's weights"):
        load_model(str(other), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "tensor", ["blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.9.ffn_up.weight", "new.weight"]
)
def test_a_tensor_of_a_gguf_file_without_a_place_is_refused_by_name(
    tiny_llama_dir: Path, tmp_path: Path, tensor: str
) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(tensor, np.ones(64, dtype=np.float32))

    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "more.gguf", also)
    with pytest.raises(FileFormatError, match=rf"no place for \({tensor}\).*Give the checkpoint"):
        load_model(str(file), device="cpu")


def test_tensors_that_converters_write_beside_those_of_the_decoder_may_be_there(tmp_path: Path) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        for name in ("rope_freqs.weight", "blk.0.attn_rot_embd.weight", "v.blk.0.attn_q.weight", "cls.weight"):
            writer.add_tensor(name, np.ones(8, dtype=np.float32))

    checkpoint = kit.tiny_llama(tmp_path / "model", tied=True)
    assert load_model(str(kit.tiny_gguf(checkpoint, tmp_path / "tied.gguf", also)), device="cpu").num_layers == 4


LLAMACPP_NAMES = {"qwen2": "qwen2", "qwen2_moe": "qwen2moe", "gpt2": "gpt2", "gemma2": "gemma2", "mamba": "mamba"}


@pytest.mark.parametrize("kind", LLAMACPP_NAMES)
def test_what_llamacpp_knows_of_an_architecture_has_a_place(kind: str) -> None:
    architecture = LLAMACPP_NAMES[kind]
    config = kit.tiny_config(kind) if kind in kit.OTHER_CONFIGS else Qwen2Config()
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    (known,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = [gguf.TENSOR_NAMES[tensor].format(bid=0) + ".weight" for tensor in gguf.MODEL_TENSORS[known]]
    check_gguf_read("it", model, architecture, names)
    with pytest.raises(FileFormatError, match=r"blk\.0\.new\.weight"):
        check_gguf_read("it", model, architecture, [*names, "blk.0.new.weight"])


def test_what_lies_beside_a_gguf_file_is_not_its_own(gguf_file: Path, tmp_path: Path) -> None:
    beside = Path(shutil.copy(gguf_file, tmp_path / "tiny.gguf"))
    kit.tiny_tokenizer(60, chat=True).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    alone, loaded = (load_model(str(file), dtype="float32", device="cpu") for file in (gguf_file, beside))
    assert loaded.tokenizer("the rain").input_ids == alone.tokenizer("the rain").input_ids
    assert loaded.tokenizer.chat_template is None
    assert loaded.tokenizer.name_or_path == str(beside)
    assert loaded.eos_token_ids == alone.eos_token_ids


@pytest.mark.parametrize("key", ["block_count", "attention.layer_norm_rms_epsilon"])
def test_what_llamacpp_demands_is_not_made_up(gguf_file: Path, tmp_path: Path, key: str) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_file.read_bytes().replace(f"llama.{key}".encode(), f"lamas.{key}".encode()))
    with pytest.raises(FileFormatError, match=f"lacks the key llama.{key}"):
        load_model(str(other), device="cpu")


def test_a_depth_that_no_model_has_is_refused(tmp_path: Path) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(10**9)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))

    with pytest.raises(FileFormatError, match="states 1000000000 layers"):
        load_model(str(_empty(tmp_path / "deep.gguf", "llama", also)), device="cpu")


def test_headers_are_read_quickly_and_alike(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def also(writer: gguf.GGUFWriter) -> None:
        writer.add_array("some.floats", [0.5, -1.0])
        writer.add_array("some.flags", [True, False])
        writer.add_array("some.texts", ["", "ü", "x" * 300])
        writer.add_array("some.lists", [[1, 2], [3]])

    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "tiny.gguf", also)
    ours, theirs = QuickReader(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert (ours.fields[name].contents(), ours.fields[name].types) == (field.contents(), field.types), name
    assert [(t.name, t.data_offset, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]

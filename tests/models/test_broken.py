"""Checkpoints with broken files: the message names the file, what it holds, what was expected and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfspec_tune.checks import shown
from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError, UsageError
from selfspec_tune.models import load_model
from selfspec_tune.models.broken_files import find_fault


@pytest.fixture
def copy(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may break."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


@pytest.fixture
def sharded(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """The same in several files of weights."""
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    (directory / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llama_dir).save_pretrained(directory, max_shard_size="100KB")
    return directory


def refusal(directory: Path, **options: Any) -> str:
    """What is said of a model whose files are broken; never a word of a library's alone."""
    with pytest.raises(FileFormatError) as raised:
        load_model(str(directory), dtype="float32", device="cpu", **options)
    return str(raised.value)


VALUES: list[tuple[str, Any, str]] = [
    ("quantization_config", [1], "quantization_config is [1]; expected an object"),
    ("quantization_config", "int4", "quantization_config is 'int4'; expected an object"),
    ("dtype", "bogus", "dtype is 'bogus'; expected one of bfloat16, float16, float32"),
    ("hidden_act", "sillu", "hidden_act is 'sillu'; expected a function that transformers knows, such as silu"),
    ("num_attention_heads", 0, "num_attention_heads is 0; expected a whole number of at least 1"),
    ("num_attention_heads", "4", "num_attention_heads is '4'; expected a whole number"),
    ("num_key_value_heads", 3, "num_key_value_heads is 3; expected a divisor of num_attention_heads, 4"),
    ("rms_norm_eps", "tiny", "rms_norm_eps is 'tiny'; expected a number above 0"),
    ("tie_word_embeddings", "true", "tie_word_embeddings is 'true'; expected true or false"),
    ("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}, "rope_parameters.rope_type is 'spiral'; expected"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "x"}, "rope_parameters.rope_theta is 'x'; expected a"),
    ("eos_token_id", [2, "x"], "eos_token_id is [2, 'x']; expected a token's number"),
    ("pad_token_id", 999, "pad_token_id is 999; expected less than vocab_size, 128, or null"),
]


@pytest.mark.parametrize(("key", "value", "expected"), VALUES)
def test_a_value_of_another_kind_is_named_with_what_was_expected(
    copy: Path, key: str, value: Any, expected: str
) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    said = refusal(copy)
    assert f"{config}: {expected}" in said
    assert "Mend it there, or get the file again." in said


@pytest.mark.parametrize(
    ("key", "value"), [("activation", "wow"), ("num_kv_heads", 0), ("window_size", "8"), ("attention_chunk_size", -3)]
)
def test_values_are_known_by_the_names_that_other_families_give_them(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    assert f"{key} is {value!r}; expected" in str(find_fault(tmp_path))


def test_the_type_of_an_unknown_model_is_named(copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "lama"}))
    with pytest.raises(UnsupportedModelError, match=r"its config\.json states the model_type 'lama'"):
        load_model(str(copy), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            lambda text: b"\xef\xbb\xbf" + text.encode(),
            "begins with a byte-order mark, which transformers does not read",
        ),
        (lambda text: text.encode("utf-16"), "begins with a byte-order mark"),
        (lambda text: text[:-5].encode(), "is not valid JSON"),
        (lambda text: b"", "is not valid JSON"),
        (lambda text: b"[]", "holds []; expected a JSON object"),
    ],
    ids=["mark", "utf-16", "torn", "empty", "list"],
)
def test_a_file_that_holds_no_object_is_named(copy: Path, name: str, content: Any, expected: str) -> None:
    file = copy / name
    file.write_bytes(content(file.read_text()))
    assert f"{file} {expected}" in refusal(copy)


@pytest.mark.parametrize("places", [{}, None, [], {"lm_head.weight": 5}])
def test_an_index_without_files_is_named(sharded: Path, places: Any) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert f"{index}: weight_map is {shown(places)}; expected an object of every tensor's name" in refusal(sharded)


def test_the_part_that_is_missing_or_torn_is_named(sharded: Path) -> None:
    part = sorted(sharded.glob("model-*.safetensors"))[1]
    content = part.read_bytes()
    part.write_bytes(content[:-100])
    assert f"{part} is corrupt or incomplete (safetensors says: " in refusal(sharded)
    part.unlink()
    assert f"that are not there (1 of {len(list(sharded.glob('model-*.safetensors'))) + 1}, such as {part.name})" in (
        refusal(sharded)
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"garbage", "is no file of PyTorch's: it begins with b'garbage'"), ([1], "holds other things than tensors")],
)
def test_weights_that_are_no_weights_are_named(copy: Path, value: Any, expected: str) -> None:
    (copy / "model.safetensors").unlink()
    weights = copy / "pytorch_model.bin"
    weights.write_bytes(value) if isinstance(value, bytes) else torch.save(value, weights)
    said = refusal(copy, allow_pickle=True)
    assert str(weights) in said
    assert expected in said


def test_what_is_not_known_keeps_the_library_s_words_and_says_whose_they_are(copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": "x"}))
    with pytest.raises(SelfSpecError, match=r"cannot be loaded\. Its files .* get them again; .*It says: “.*dropout"):
        load_model(str(copy), dtype="float32", device="cpu")


def test_what_is_not_installed_is_named_and_no_file_blamed(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_attn_implementation": "flash_attention_2"}))
    with pytest.raises(UsageError, match=r"what is not installed here.*FlashAttention2.*config\.json") as raised:
        load_model(str(copy), dtype="float32", device="cpu")
    assert "corrupt" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", 2**28), ("intermediate_size", 2**30), ("hidden_size", 2**24)]
)
def test_sizes_far_beyond_the_files_are_refused_before_they_are_made(copy: Path, key: str, value: int) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: value}))
    assert f"{copy / 'config.json'} states the sizes of " in refusal(copy)

from pathlib import Path

import pytest
import torch

from selfspec_tune.errors import FileFormatError, UnsupportedModelError
from selfspec_tune.models import load_model
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


@pytest.mark.parametrize("keep", [0, 5, 20_000])
def test_a_torn_gguf_file_is_refused(gguf_file: Path, tmp_path: Path, keep: int) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="no complete GGUF file"):
        load_model(str(torn), dtype="float32", device="cpu")


def test_an_architecture_that_gguf_cannot_give_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_file.read_bytes().replace(b"llama", b"zzzzz"))
    with pytest.raises(UnsupportedModelError, match="original checkpoint"):
        load_model(str(other), dtype="float32", device="cpu")

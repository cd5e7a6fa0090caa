"""Checkpoints that hold more than their architecture has a place for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec_tune.errors import FileFormatError
from selfspec_tune.models import load_model
from tests import kit

WEIGHTS = "model.safetensors"


def _with(folder: Path, **tensors: torch.Tensor) -> Path:
    kit.tiny_llama(folder)
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(folder / WEIGHTS) | named, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("model__layers__0__self_attn__q_proj__bias", "of another architecture"),
        ("model__layers__1__self_attn__q_norm__weight", "of another architecture"),
        ("model__layers__9__mlp__up_proj__weight", "of fewer layers"),
        ("model__layers__0__mlp__up_proj__lora_A__weight", "adapter was never merged"),
        ("model__layers__0__mlp__up_proj__weight_scale", "quantised in a way"),
        ("model__norm__bias", "of another architecture"),
    ],
)
def test_a_tensor_without_a_place_is_refused_by_name(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(FileFormatError, match=rf"{name.replace('__', '.')}.*{cause}"):
        load_model(str(_with(tmp_path, **{name: torch.ones(4)})), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["model__layers__0__self_attn__rotary_emb__inv_freq", "vision_tower__patch__weight"])
def test_what_is_made_anew_or_is_no_part_of_the_decoder_may_be_there(tmp_path: Path, name: str) -> None:
    assert load_model(str(_with(tmp_path, **{name: torch.ones(4)})), dtype="float32", device="cpu").num_layers


def test_a_configuration_of_fewer_layers_is_refused(tmp_path: Path) -> None:
    kit.tiny_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(FileFormatError, match="has no place for"):
        load_model(str(tmp_path), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("model_type", "stack"), [("gemma3", "language_model.model.layers"), ("opt", "model.decoder.layers")]
)
def test_so_is_a_tensor_in_a_stack_that_lies_deeper(tmp_path: Path, model_type: str, stack: str) -> None:
    weights = kit.tiny_of_type(tmp_path, model_type) / WEIGHTS
    save_file(load_file(weights) | {f"{stack}.9.strange.weight": torch.ones(4)}, weights, metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"has no place for .*9\.strange\.weight"):
        load_model(str(tmp_path), dtype="float32", device="cpu")

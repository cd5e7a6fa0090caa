from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import find_sublayers
from tests import kit


def build(model_type: str, **changes: bool) -> PreTrainedModel:
    config = kit.tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    return kit.random_model(config)


@pytest.mark.parametrize(
    ("model_type", "attention", "mlp"),
    [
        ("gpt2", "transformer.h.0.attn", "transformer.h.0.mlp"),
        ("gpt_neox", "gpt_neox.layers.0.attention", "gpt_neox.layers.0.mlp"),
        ("codegen", "transformer.h.0.attn", "transformer.h.0.mlp"),
        ("opt", "model.decoder.layers.0.self_attn", "model.decoder.layers.0.fc2"),
        ("bloom", "transformer.h.0.self_attention.dense", "transformer.h.0.mlp.dense_4h_to_h"),
        ("gemma2", "model.layers.0.self_attn", "model.layers.0.mlp"),
        ("mixtral", "model.layers.0.self_attn", "model.layers.0.mlp"),
        ("qwen2_moe", "model.layers.0.self_attn", "model.layers.0.mlp"),
    ],
)
def test_sublayers_are_found_by_plan_or_structure(model_type: str, attention: str, mlp: str) -> None:
    model = build(model_type)
    found = find_sublayers(model)
    assert found.num_layers == 2
    assert found.names[:2] == (attention, mlp)
    assert found.attention[1] is model.get_submodule(attention.replace(".0.", ".1."))
    assert found.mlp[1] is model.get_submodule(mlp.replace(".0.", ".1."))


@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_the_main_families_have_two_sublayers_a_layer(checkpoint: str, request: pytest.FixtureRequest) -> None:
    found = find_sublayers(AutoModelForCausalLM.from_pretrained(request.getfixturevalue(checkpoint)))
    assert len(found.attention) == len(found.mlp) == found.num_layers == 4
    assert found.names[5] == "model.layers.2.mlp"


def test_as_many_experts_as_layers_are_not_mistaken_for_layers() -> None:
    config = kit.tiny_config("qwen2_moe")
    assert config.num_experts == config.num_hidden_layers
    assert find_sublayers(kit.random_model(config)).names[0].startswith("model.layers.0")


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("opt", {"do_layer_norm_before": False}, "its norms are on the stream itself"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "it adds to the normalised stream"),
        ("mamba", {}, "MambaForCausalLM cannot draft for itself"),
    ],
)
def test_what_cannot_be_separated_is_refused_by_name(model_type: str, changes: dict[str, bool], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as refusal:
        find_sublayers(build(model_type, **changes))
    assert "What works: decoder-only models" in str(refusal.value)


def test_an_encoder_decoder_is_refused() -> None:
    model = build("codegen")
    model.config.is_encoder_decoder = True
    with pytest.raises(UnsupportedModelError, match="encoder–decoder"):
        find_sublayers(model)


def test_shared_keys_and_values_are_refused() -> None:
    model = build("codegen")
    model.config.num_kv_shared_layers = 1
    with pytest.raises(UnsupportedModelError, match="keys and values of earlier ones"):
        find_sublayers(model)


def test_a_hybrid_is_refused_by_its_layer_types(tiny_qwen2_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2_dir)
    model.config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(UnsupportedModelError, match="hybrid with linear_attention layers"):
        find_sublayers(model)


def test_weights_outside_attention_and_mlp_are_refused() -> None:
    model = build("codegen")
    model.transformer.h[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match=r"transformer.h.1 has weights outside .* extra.weight"):
        find_sublayers(model)


def test_two_possible_decoders_are_refused() -> None:
    model = build("codegen")
    model.other = torch.nn.ModuleList(model.transformer.h)
    with pytest.raises(UnsupportedModelError, match="several stacks of 2 layers"):
        find_sublayers(model)


def test_a_stack_of_another_length_is_no_decoder() -> None:
    model = build("codegen")
    model.config.num_hidden_layers = 3
    with pytest.raises(UnsupportedModelError, match="no stack of 3 layers"):
        find_sublayers(model)

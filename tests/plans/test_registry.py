"""From a configuration to a plan, or to a reason."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans import features, plan_of


def test_a_plan_of_llama_needs_nothing_more() -> None:
    plan = plan_of(AutoConfig.for_model("llama", num_hidden_layers=3).to_dict())
    assert (plan.num_layers, features(plan)) == (3, frozenset())


def test_an_unknown_architecture_has_no_plan() -> None:
    with pytest.raises(UnsupportedModelError, match="no plan of the architecture abacus is known"):
        plan_of({"model_type": "abacus"})


def test_layers_that_do_not_attend_have_no_plan() -> None:
    layers = ["full_attention", "linear_attention"]
    config = AutoConfig.for_model("qwen2", num_hidden_layers=2, layer_types=layers).to_dict()
    with pytest.raises(UnsupportedModelError, match="hybrid with linear_attention layers"):
        plan_of(config)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("no_rope_layers", [1]),
        ("layer_types", 3),
        ("layer_types", [None]),
        ("num_attention_heads", 0),
        ("hidden_act", []),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_reason(setting: str, value: object) -> None:
    config = AutoConfig.for_model("smollm3", num_hidden_layers=2).to_dict()
    with pytest.raises(UnsupportedModelError):
        plan_of(config | {setting: value})


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "it sends a token to 9 of its 8 experts"),
        ("qwen3_moe", {"num_experts_per_tok": 0}, "it sends a token to 0 of its 128 experts"),
        ("gemma2", {"query_pre_attn_scalar": -4}, "its attention multiplies scores with"),
        ("llama4_text", {"attention_chunk_size": -3}, "its attention sees a chunk of -3 positions"),
        ("mistral", {"sliding_window": -8}, "its attention sees a window of -8 positions"),
        ("stablelm", {"partial_rotary_factor": 3.0}, "it rotates 240 of the 80 dimensions of a head"),
    ],
)
def test_numbers_that_no_layer_can_have_are_a_reason(model_type: str, settings: dict[str, Any], reason: str) -> None:
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **settings).to_dict()
    with pytest.raises(UnsupportedModelError, match=reason):
        plan_of(config)

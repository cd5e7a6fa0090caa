"""From a configuration to a plan, or to a reason."""

from __future__ import annotations

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

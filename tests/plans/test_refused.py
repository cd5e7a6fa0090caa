"""Every causal language model of transformers has a plan, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import load_model
from selfspec_tune.models.sublayers import refuse_by_config
from selfspec_tune.plans import plan_of
from selfspec_tune.plans.refused import NOT_READ, REFUSED, UNPLANNED, refused_reason
from selfspec_tune.plans.registry import FAMILIES

# What names a checkpoint's wrapper, or a name that transformers never gives a configuration: others stand for them.
_NAMES_ALONE = {"gpt-sw3"}


def test_every_causal_language_model_is_planned_or_refused_or_known_to_be_unread() -> None:
    tables = (FAMILIES, REFUSED, UNPLANNED, NOT_READ)
    homeless = [
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name not in _NAMES_ALONE and not any(name in table for table in tables)
    ]
    assert homeless == []


def test_no_family_is_in_two_tables() -> None:
    names = [name for table in (FAMILIES, REFUSED, UNPLANNED, NOT_READ) for name in table]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_refused_family_is_refused_by_its_configuration_with_its_reason() -> None:
    for model_type, reason in REFUSED.items():
        if model_type in ("gemma4_assistant", "gemma4_unified_assistant"):  # need another model's configuration
            continue
        with pytest.raises(UnsupportedModelError) as refusal:
            refuse_by_config(AutoConfig.for_model(model_type))
        message = str(refusal.value)
        assert f"cannot draft for itself: {reason}. What works: decoder-only models" in message, model_type


def test_what_has_no_plan_says_why() -> None:
    for model_type, reason in UNPLANNED.items():
        with pytest.raises(UnsupportedModelError) as refusal:
            plan_of({"model_type": model_type})
        assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"layer_types": ["full_attention", "mamba"]},
            "hybrid with mamba layers, which cannot be rewound; see “Recurrent",
        ),
        ({"num_kv_shared_layers": 2}, "keys and values of earlier ones"),
        ({"hidden_size_per_layer_input": 256}, "a third thing beside its attention and MLP"),
        ({"enable_moe_block": True}, "an MLP and experts side by side"),
        ({"use_bidirectional_attention": True}, "sees later positions too"),
        ({"text_config": {"layer_types": ["conv"]}}, "hybrid with conv layers"),
        ({"is_causal": False}, "sees later positions too"),
        ({"per_layer_config": {"1": {"num_attention_heads": 2}}}, "changes single layers"),
    ],
)
def test_a_setting_refuses_too(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        plan_of({"model_type": "llama", **config})


@pytest.mark.parametrize(
    "config",
    [
        {"use_bidirectional_attention": "vision"},
        {"layer_types": ["full_attention", "mlp"]},
        {"num_kv_shared_layers": 0},
    ],
)
def test_a_setting_that_changes_nothing_for_a_text_does_not_refuse(config: dict[str, Any]) -> None:
    assert refused_reason({"model_type": "llama", **config}) is None


def test_a_refused_model_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]})
    )
    with pytest.raises(
        UnsupportedModelError, match="Qwen3NextForCausalLM cannot draft for itself: it keeps a recurrent state"
    ):
        load_model(str(tmp_path))

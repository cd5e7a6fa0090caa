"""Plans of every family: each tensor claimed once, each setting that its code reads planned or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from selfspec_tune.models.bound import bind
from selfspec_tune.plans import features, plan_of
from tests.families import FAMILIES

each_family = pytest.mark.parametrize("name", FAMILIES)


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(**(FAMILIES[name].config | changes))


def bare_model(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@each_family
def test_every_tensor_is_claimed_once_and_no_feature_is_lost(name: str) -> None:
    plan = bind(bare_model(config_of(name))).plan
    assert features(plan) == FAMILIES[name].needs


@each_family
def test_the_plan_of_the_saved_configuration_is_the_models(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    config.save_pretrained(tmp_path)
    assert plan_of(AutoConfig.from_pretrained(tmp_path).to_dict()) == plan_of(config.to_dict())

"""Which runner an architecture is expected to get on this machine, told from its configuration class alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfspec_tune.engine.kernels.build import obtainable
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.models.structure import structure_reason
from selfspec_tune.models.sublayers import find_sublayers

# What no runner minds: small, and two layers, so that layers of two kinds in turn show.
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True)
class Expected:
    """The runner's name, and why it is no faster one."""

    name: str
    reason: str | None = None


def expected_runner(model_type: str, settings: Mapping[str, Any]) -> Expected:
    """What ``auto`` would take for a model of this architecture whose configuration has ``settings`` besides.

    The architecture is built without weights, as small as it gets, and looked at as a loaded model is.
    Nothing is downloaded, measured or compiled: the choice itself still proves equality, and times.
    """
    reason = _unserved_reason(model_type, tuple(settings.items()))
    if reason is not None:
        return Expected("reference", reason)
    if torch.cuda.is_available():
        return Expected("graphs")
    return Expected("native") if obtainable() else Expected("fast", "there are no native kernels, nor a compiler")


@cache
def _unserved_reason(model_type: str, settings: tuple[tuple[str, Any], ...]) -> str | None:
    config = AutoConfig.for_model(model_type, **(_SMALL | dict(settings)))
    try:
        with quietly(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return structure_reason(model, find_sublayers(model))
    except UnsupportedModelError as error:
        return str(error)

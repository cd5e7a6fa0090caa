"""Which runner an architecture is expected to get on this machine, told from its configuration class alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfspec_tune.engine.kernels.build import obtainable
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.loading_output import quietly
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
    reasons = _unserved_reasons(model_type, tuple(settings.items()))
    if reasons[FastRunner.name] is not None:
        return Expected("reference", reasons[FastRunner.name])
    if torch.cuda.is_available():
        reason = reasons[GraphedRunner.name]
        return Expected("graphs") if reason is None else Expected("fast", reason)
    reason = reasons[NativeRunner.name]
    if reason is None and not obtainable():
        reason = "there are no native kernels, nor a compiler"
    return Expected("native") if reason is None else Expected("fast", reason)


@cache
def _unserved_reasons(model_type: str, settings: tuple[tuple[str, Any], ...]) -> dict[str, str | None]:
    """By runner, why it does not serve the architecture; None where it does."""
    config = AutoConfig.for_model(model_type, **(_SMALL | dict(settings)))
    try:
        with quietly(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        find_sublayers(model)
    except UnsupportedModelError as error:
        return dict.fromkeys((FastRunner.name, GraphedRunner.name, NativeRunner.name), str(error))
    return {
        FastRunner.name: unserved_reason(model, FastRunner.SERVES),
        GraphedRunner.name: unserved_reason(model, GraphedRunner.SERVES, "the captured graphs"),
        NativeRunner.name: unserved_reason(model, NativeRunner.SERVES, "the native kernels"),
    }

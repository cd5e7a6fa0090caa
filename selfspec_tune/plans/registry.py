"""From a configuration to a plan, for the families that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import (
    adjacent,
    apertus,
    biogpt,
    bitnet,
    exaone,
    gemma,
    glm,
    gpt_neo,
    granite,
    hunyuan,
    llama,
    mistral,
    nanochat,
    olmo,
    persimmon,
    phi3,
    plain,
    qwen,
    smollm3,
    stablelm,
    starcoder2,
    wrapper,
)
from selfspec_tune.plans.refused import UNPLANNED, refused_reason

Config = Mapping[str, Any]

FAMILIES: dict[str, Callable[[Config], DecoderPlan]] = {
    "apertus": apertus.apertus,
    "apertus1p5_text": apertus.apertus,
    "arcee": plain.arcee,
    "biogpt": biogpt.biogpt,
    "bitnet": bitnet.bitnet,
    "cwm": mistral.ministral,
    "ernie4_5": adjacent.ernie4_5,
    "exaone": llama.llama,
    "exaone4": exaone.exaone4,
    "fuyu": wrapper.fuyu,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3": wrapper.gemma3,
    "gemma3_text": gemma.gemma3_text,
    "glm": glm.glm,
    "glm4": glm.glm4,
    "got_ocr2": wrapper.got_ocr2,
    "gpt_neo": gpt_neo.gpt_neo,
    "granite": granite.granite,
    "granitemoehybrid": granite.granitemoehybrid,
    "helium": adjacent.helium,
    "hunyuan_v1_dense": hunyuan.hunyuan_v1_dense,
    "hyperclovax": granite.hyperclovax,
    "internlm3": llama.llama,
    "iquestcoder": llama.llama,
    "jais2": plain.jais2,
    "llama": llama.llama,
    "ministral": mistral.ministral,
    "ministral3": mistral.ministral3,
    "mistral": mistral.mistral,
    "nanochat": nanochat.nanochat,
    "nemotron": plain.nemotron,
    "olmo": olmo.olmo,
    "olmo2": olmo.olmo2,
    "olmo3": olmo.olmo3,
    "persimmon": persimmon.persimmon,
    "phi3": phi3.phi3,
    "phi4_multimodal": wrapper.phi4_multimodal,
    "qwen2": qwen.qwen2,
    "qwen3": qwen.qwen3,
    "seed_oss": llama.llama,
    "smollm3": smollm3.smollm3,
    "stablelm": stablelm.stablelm,
    "starcoder2": starcoder2.starcoder2,
    "vaultgemma": gemma.vaultgemma,
}
"""By transformers' ``model_type``: what makes a plan of a configuration, given as a dictionary with every default."""


def plan_of(config: Config) -> DecoderPlan:
    """The plan of a model with this configuration, a dictionary with every default filled in.

    Raises `UnsupportedModelError` with the reason alone where the family is unknown or refused, or the configuration
    asks for something that no plan holds.
    """
    model_type = str(config.get("model_type"))
    reason = refused_reason(config)
    if reason is None and model_type not in FAMILIES:
        reason = UNPLANNED.get(model_type, f"no plan of the architecture {model_type} is known")
    if reason is None and config.get("per_layer_config"):
        reason = "its configuration (per_layer_config) changes single layers"
    if reason is not None:
        raise UnsupportedModelError(reason)
    try:
        return FAMILIES[model_type](config)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModelError(f"its configuration cannot be read ({type(error).__name__}: {error})") from error

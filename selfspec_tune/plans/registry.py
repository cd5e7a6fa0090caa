"""From a configuration to a plan, for the families that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import ReachKind
from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import (
    adjacent,
    afmoe,
    apertus,
    biogpt,
    bitnet,
    bloom,
    cohere,
    exaone,
    flint,
    gemma,
    glm,
    glm_moe,
    gpt2,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    granite,
    hunyuan,
    llama,
    llama4,
    mistral,
    mixtral,
    nanochat,
    olmo,
    opt,
    persimmon,
    phi,
    phi3,
    plain,
    qwen,
    qwen_moe,
    smollm3,
    stablelm,
    starcoder2,
    wrapper,
)
from selfspec_tune.plans.mlp import ExpertsPlan
from selfspec_tune.plans.refused import UNPLANNED, refused_reason

Config = Mapping[str, Any]

FAMILIES: dict[str, Callable[[Config], DecoderPlan]] = {
    "afmoe": afmoe.afmoe,
    "apertus": apertus.apertus,
    "apertus1p5_text": apertus.apertus,
    "arcee": plain.arcee,
    "aria_text": mixtral.aria_text,
    "biogpt": biogpt.biogpt,
    "bitnet": bitnet.bitnet,
    "bloom": bloom.bloom,
    "cohere": cohere.cohere,
    "cohere2": cohere.cohere2,
    "cohere2_moe": cohere.cohere2_moe,
    "cohere_compass_text": cohere.cohere_compass_text,
    "cwm": mistral.ministral,
    "dots1": glm_moe.dots1,
    "ernie4_5": adjacent.ernie4_5,
    "ernie4_5_moe": adjacent.ernie4_5_moe,
    "exaone": llama.llama,
    "exaone4": exaone.exaone4,
    "exaone_moe": glm_moe.exaone_moe,
    "falcon": bloom.falcon,
    "flex_olmo": olmo.flex_olmo,
    "flint": flint.flint,
    "fuyu": wrapper.fuyu,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3": wrapper.gemma3,
    "gemma3_text": gemma.gemma3_text,
    "glm": glm.glm,
    "glm4": glm.glm4,
    "glm4_moe": glm_moe.glm4_moe,
    "got_ocr2": wrapper.got_ocr2,
    "gpt2": gpt2.gpt2,
    "gpt_bigcode": gpt2.gpt_bigcode,
    "gpt_neo": gpt_neo.gpt_neo,
    "gpt_neox": gpt_neox.gpt_neox,
    "gpt_oss": gpt_oss.gpt_oss,
    "gptj": gpt2.gptj,
    "granite": granite.granite,
    "granite_swa": granite.granite_swa,
    "granitemoe": granite.granitemoe,
    "granitemoe_swa": granite.granitemoe_swa,
    "granitemoehybrid": granite.granitemoehybrid,
    "granitemoeshared": granite.granitemoe,
    "helium": adjacent.helium,
    "hunyuan_v1_dense": hunyuan.hunyuan_v1_dense,
    "hunyuan_v1_moe": hunyuan.hunyuan_v1_moe,
    "hy_v3": glm_moe.hy_v3,
    "hyperclovax": granite.hyperclovax,
    "internlm3": llama.llama,
    "iquestcoder": llama.llama,
    "jais2": plain.jais2,
    "kolibri1": flint.kolibri1,
    "llama": llama.llama,
    "llama4": llama4.llama4,
    "llama4_text": llama4.llama4_text,
    "mellum": qwen_moe.mellum,
    "minimax_m2": glm_moe.minimax_m2,
    "ministral": mistral.ministral,
    "ministral3": mistral.ministral3,
    "mistral": mistral.mistral,
    "mistral3": wrapper.mistral3,
    "mixtral": mixtral.mixtral,
    "moss_transcribe_diarize": wrapper.moss_transcribe_diarize,
    "mpt": bloom.mpt,
    "nanochat": nanochat.nanochat,
    "nemotron": plain.nemotron,
    "olmo": olmo.olmo,
    "olmo2": olmo.olmo2,
    "olmo3": olmo.olmo3,
    "olmoe": mixtral.olmoe,
    "opt": opt.opt,
    "persimmon": persimmon.persimmon,
    "phi": phi.phi,
    "phi3": phi3.phi3,
    "phi4_multimodal": wrapper.phi4_multimodal,
    "qwen2": qwen.qwen2,
    "qwen2_moe": qwen_moe.qwen2_moe,
    "qwen3": qwen.qwen3,
    "qwen3_moe": qwen_moe.qwen3_moe,
    "sarvam_moe": glm_moe.glm4_moe,
    "seed_oss": llama.llama,
    "smollm3": smollm3.smollm3,
    "solar_open": glm_moe.solar_open,
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
    try:
        return _plan_of(config)
    except (AttributeError, LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModelError(f"its configuration cannot be read ({type(error).__name__}: {error})") from error


def _plan_of(config: Config) -> DecoderPlan:
    model_type = str(config.get("model_type"))
    reason = refused_reason(config)
    if reason is None and model_type not in FAMILIES:
        reason = UNPLANNED.get(model_type, f"no plan of the architecture {model_type} is known")
    if reason is None and config.get("per_layer_config"):
        reason = "its configuration (per_layer_config) changes single layers"
    if reason is not None:
        raise UnsupportedModelError(reason)
    plan = FAMILIES[model_type](config)
    if (nonsense := next(filter(None, map(_nonsense, plan.layers)), None)) is not None:
        raise UnsupportedModelError(nonsense)
    return plan


def _nonsense(layer: LayerPlan) -> str | None:
    """What a configuration states that no layer can have, whatever its family; transformers checks none of it."""
    attention, mlp = layer.attention, layer.mlp
    if isinstance(attention.scale, complex) or not isfinite(attention.scale):
        return f"its attention multiplies scores with {attention.scale:.3g}"
    if attention.reach.kind is not ReachKind.FULL and attention.reach.size < 1:
        return f"its attention sees a {attention.reach.kind} of {attention.reach.size} positions"
    if attention.rope is not None and not 1 <= attention.rope.size <= attention.head_size:
        return f"it rotates {attention.rope.size} of the {attention.head_size} dimensions of a head"
    if isinstance(mlp, ExpertsPlan) and not 1 <= mlp.chosen <= mlp.count:
        return f"it sends a token to {mlp.chosen} of its {mlp.count} experts"
    return None

"""Llama 4."""

from __future__ import annotations

from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AttentionPlan, GrowthPlan, Reach, ReachKind, RopePairs, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import RouterPlan, Score


def llama4_text(config: Config) -> DecoderPlan:
    """Chunks with rotary positions and norms behind them; full layers whose queries grow; experts weigh their input."""
    at = "feed_forward"
    router = RouterPlan(
        weight=f"{at}.router.weight", score=Score.SIGMOID, is_chosen_first=True, is_rounded=True, on_input=True
    )
    width = config["intermediate_size"]
    shared = mixture.shared(config, f"{at}.shared_expert", width)
    experts = mixture.experts(config, router, at, width=width, is_transposed=True, shared=shared)
    dense = llama.mlp(
        config,
        silence=(at,),
        inputs=(f"{at}.gate_proj", f"{at}.up_proj"),
        output=f"{at}.down_proj",
        width=config["intermediate_size_mlp"],
    )
    return mixture.layered(
        config,
        lambda layer: _attention(config, layer),
        lambda layer: experts if layer in config["moe_layers"] else None,
        dense=dense,
    )


def llama4(config: Config) -> DecoderPlan:
    """The configuration with a vision tower's: for text transformers loads the decoder alone."""
    return llama4_text(config["text_config"])


def _attention(config: Config, layer: int) -> AttentionPlan:
    size = llama.head_size(config)
    if not config["no_rope_layers"][layer]:
        growth = GrowthPlan(beta=config["attn_scale"], length=config["floor_scale"], offset=1)
        tuned: dict[str, Any] = {"growth": growth} if config["attn_temperature_tuning"] else {}
        return llama.attention(config, rope=None, reach=_reach(config, layer), **tuned)
    norm = llama.norm(config, "self_attn.qk_norm", has_weight=False)
    return llama.attention(
        config,
        rope=RopePlan(table="full", size=size, pairs=RopePairs.ADJACENT, in_float32=True),
        qk_norm=llama.qk_norm(config, query=norm, key=norm, is_after_rope=True) if config["use_qk_norm"] else None,
        reach=_reach(config, layer),
    )


def _reach(config: Config, layer: int) -> Reach:
    kind, size = config["layer_types"][layer], config["attention_chunk_size"]
    if kind == "full_attention":
        return Reach()
    if kind != "chunked_attention" or not size:
        raise UnsupportedModelError(f"its layer {layer} is of type {kind} with chunks of {size}")
    return Reach(ReachKind.CHUNK, size)

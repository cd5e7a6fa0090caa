"""Granite and HyperCLOVA X: four multipliers, and norms after each sub-layer in the latter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AttentionPlan, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, HeadPlan, LayerPlan, RopeTable
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan, RouterPlan


def granite(config: Config) -> DecoderPlan:
    """Llama with multipliers of scores, residuals, embeddings and logits."""
    residual = config["residual_multiplier"]
    attention = llama.attention(config, scale=config["attention_multiplier"], residual_scale=residual)
    return _decoder(config, attention, llama.mlp(config, residual_scale=residual))


def granitemoehybrid(config: Config) -> DecoderPlan:
    """Granite 4 without Mamba layers and without experts: its MLP is what others share beside theirs."""
    if config["num_local_experts"]:
        raise UnsupportedModelError("its layers have experts beside an MLP of their own")
    is_rotated = config["position_embedding_type"] == "rope"
    residual = config["residual_multiplier"]
    attention = llama.attention(config, scale=config["attention_multiplier"], residual_scale=residual)
    mlp = llama.mlp(
        config,
        silence=("shared_mlp",),
        width=config["shared_intermediate_size"],
        inputs=("shared_mlp.input_linear",),
        output="shared_mlp.output_linear",
        residual_scale=residual,
    )
    if is_rotated:
        return _decoder(config, attention, mlp)
    return _decoder(config, replace(attention, rope=None), mlp, ropes={})


def hyperclovax(config: Config) -> DecoderPlan:
    """Granite, but logits are multiplied; norms after each sub-layer where asked for."""
    first, second = (
        llama.norm(config, name) if config["use_post_norm"] else None for name in ("post_norm1", "post_norm2")
    )
    residual = config["residual_multiplier"]
    attention = llama.attention(config, scale=config["attention_multiplier"], residual_scale=residual, post=first)
    mlp = llama.mlp(config, residual_scale=residual, post=second)
    return _decoder(config, attention, mlp, head=HeadPlan(scale=config["logits_scaling"]))


def granite_swa(config: Config) -> DecoderPlan:
    """Granite with attention sinks, windows by layer, and a base of rotary positions for each layer, or none."""
    mlp = llama.mlp(config, residual_scale=config["residual_multiplier"])
    return _based(config, mlp)


def granitemoe(config: Config) -> DecoderPlan:
    """Granite with experts, of whose logits the chosen ones alone are scored; an MLP beside them in some."""
    attention = llama.attention(
        config, scale=config["attention_multiplier"], residual_scale=config["residual_multiplier"]
    )
    experts = _experts(config)
    return mixture.layered(config, lambda _: attention, lambda _: experts, **_ends(config))


def granitemoe_swa(config: Config) -> DecoderPlan:
    """Both."""
    return _based(config, _experts(config))


def _experts(config: Config) -> ExpertsPlan:
    at = "block_sparse_moe"
    shared = mixture.shared(
        config,
        "shared_mlp",
        config.get("shared_intermediate_size", 0),
        inputs=("shared_mlp.input_linear",),
        output="shared_mlp.output_linear",
    )
    return mixture.experts(
        config,
        RouterPlan(weight=f"{at}.router.weight", is_chosen_first=True, is_rounded=True),
        at,
        silence=(at,) if shared is None else (at, "shared_mlp"),
        residual_scale=config["residual_multiplier"],
        shared=shared,
    )


def _based(config: Config, mlp: MlpPlan | ExpertsPlan) -> DecoderPlan:
    bases = sorted({base for base in config["layer_rope_theta"] if base})
    size = llama.head_size(config)

    def layer(index: int) -> LayerPlan:
        base = config["layer_rope_theta"][index]
        attention = llama.attention(
            config,
            scale=config["attention_multiplier"],
            residual_scale=config["residual_multiplier"],
            rope=RopePlan(table=str(base), size=size) if base else None,
            reach=llama.reach(config, index),
            sinks="self_attn.sinks",
        )
        return LayerPlan(attention=attention, mlp=mlp)

    llama.check_static_rope(config["rope_parameters"])
    ropes = {str(base): RopeTable(module=f"model.rotary_embs.{index}") for index, base in enumerate(bases)}
    return llama.decoder(config, layer, ropes=ropes, **_ends(config))


def _decoder(config: Config, attention: AttentionPlan, mlp: MlpPlan, **changes: Any) -> DecoderPlan:
    return llama.alike(config, attention, mlp, **(_ends(config) | changes))


def _ends(config: Config) -> dict[str, Any]:
    return {
        "embedding": EmbeddingPlan(
            path="model.embed_tokens", scale=config["embedding_multiplier"], is_scale_rounded=False
        ),
        "head": HeadPlan(scale=1 / config["logits_scaling"]),
    }

"""Granite, dense, and HyperCLOVA X: four multipliers, and norms after each half in the latter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, HeadPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import MlpPlan


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
    """Granite, but logits are multiplied; norms after each half where asked for."""
    first, second = (
        llama.norm(config, name) if config["use_post_norm"] else None for name in ("post_norm1", "post_norm2")
    )
    residual = config["residual_multiplier"]
    attention = llama.attention(config, scale=config["attention_multiplier"], residual_scale=residual, post=first)
    mlp = llama.mlp(config, residual_scale=residual, post=second)
    return _decoder(config, attention, mlp, head=HeadPlan(scale=config["logits_scaling"]))


def _decoder(config: Config, attention: AttentionPlan, mlp: MlpPlan, **changes: Any) -> DecoderPlan:
    given = {
        "embedding": EmbeddingPlan(
            path="model.embed_tokens", scale=config["embedding_multiplier"], is_scale_rounded=False
        ),
        "head": HeadPlan(scale=1 / config["logits_scaling"]),
    }
    return llama.alike(config, attention, mlp, **(given | changes))

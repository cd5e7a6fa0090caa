"""Gemma 1 to 3 and VaultGemma: norm weights stored minus one, scaled embeddings, GELU-tanh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, HeadPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import MlpPlan
from selfspec_tune.plans.norm import NormPlan


def norm(config: Config, path: str) -> NormPlan:
    """1 + weight, applied in float32."""
    return llama.norm(config, path, one_plus=True, is_late=True)


def gemma(config: Config) -> DecoderPlan:
    """Llama's places of norms."""
    attention = llama.attention(config, norm=norm(config, "input_layernorm"))
    mlp = llama.mlp(config, norm=norm(config, "post_attention_layernorm"))
    return _decoder(config, lambda _: LayerPlan(attention=attention, mlp=mlp))


def gemma2(config: Config) -> DecoderPlan:
    """Norms before and after each sub-layer; caps; windows by layer; a scale of its own."""
    mlp = _mlp(config, post=norm(config, "post_feedforward_layernorm"))
    post = norm(config, "post_attention_layernorm")
    return _capped(
        config, lambda layer: _attention(config, layer, post=post, cap=config["attn_logit_softcapping"]), mlp
    )


def vaultgemma(config: Config) -> DecoderPlan:
    """Gemma 2 without norms after a sub-layer."""
    return _capped(config, lambda layer: _attention(config, layer, cap=config["attn_logit_softcapping"]), _mlp(config))


def gemma3_text(config: Config) -> DecoderPlan:
    """Gemma 2 with norms of queries and keys, a table of rotary positions for each kind of layer, and no score cap.

    Its ``attn_logit_softcapping`` is never passed on to the softmax.
    """
    query, key = (norm(config, f"self_attn.{name}") for name in ("q_norm", "k_norm"))
    norms = llama.qk_norm(config, query=query, key=key)
    post = norm(config, "post_attention_layernorm")
    size = llama.head_size(config)

    def attention(layer: int) -> AttentionPlan:
        rope = RopePlan(table=config["layer_types"][layer], size=size)
        return _attention(config, layer, post=post, qk_norm=norms, rope=rope)

    mlp = _mlp(config, post=norm(config, "post_feedforward_layernorm"))
    return _capped(config, attention, mlp, ropes=llama.ropes_by_type(config))


def _attention(config: Config, layer: int, **changes: Any) -> AttentionPlan:
    given = {
        "norm": norm(config, "input_layernorm"),
        "scale": config["query_pre_attn_scalar"] ** -0.5,
        "reach": llama.reach(config, layer),
    }
    return llama.attention(config, **(given | changes))


def _mlp(config: Config, **changes: Any) -> MlpPlan:
    activation = llama.activation(config["hidden_activation"])
    return llama.mlp(config, norm=norm(config, "pre_feedforward_layernorm"), activation=activation, **changes)


def _capped(config: Config, attention: Callable[[int], AttentionPlan], mlp: MlpPlan, **changes: Any) -> DecoderPlan:
    given = {"head": HeadPlan(cap=config["final_logit_softcapping"])}
    return _decoder(config, lambda layer: LayerPlan(attention=attention(layer), mlp=mlp), **(given | changes))


def _decoder(config: Config, layer: Callable[[int], LayerPlan], **changes: Any) -> DecoderPlan:
    embedding = EmbeddingPlan(path="model.embed_tokens", scale=config["hidden_size"] ** 0.5)
    return llama.decoder(config, layer, embedding=embedding, norm=norm(config, "model.norm"), **changes)

"""Hunyuan 1, dense and with experts."""

from __future__ import annotations

from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.decoder import DecoderPlan, RopeTable
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import ExpertsPlan


def hunyuan_v1_dense(config: Config) -> DecoderPlan:
    """Norms of queries and keys after rope."""
    return llama.alike(config, _attention(config), llama.mlp(config), ropes=_ropes(config))


def hunyuan_v1_moe(config: Config) -> DecoderPlan:
    """Experts in every layer, beside a shared MLP; how many a token goes to may differ by layer.

    transformers leaves the router's weight in float32, whatever the model's type, and so its weights of experts.
    """
    chosen = config["moe_topk"]
    router = mixture.softmax_router(weight="mlp.gate.wg.weight", is_float32=True, renormalise=True, is_rounded=False)
    shared = mixture.shared(config, "mlp.shared_mlp", config["intermediate_size"])

    def experts(layer: int) -> ExpertsPlan:
        own = chosen if isinstance(chosen, int) else chosen[layer]
        return mixture.experts(config, router, width=config["intermediate_size"], chosen=own, shared=shared)

    attention = _attention(config)
    return mixture.layered(config, lambda _: attention, experts, ropes=_ropes(config))


def _attention(config: Config) -> AttentionPlan:
    norms = llama.qk_norm(config, ("query_layernorm", "key_layernorm"), is_after_rope=True)
    return llama.attention(config, qk_norm=norms)


def _ropes(config: Config) -> dict[str, RopeTable]:
    """The rope called dynamic is static where ``alpha`` is set."""
    rope = config["rope_parameters"]
    is_static = rope["rope_type"] == "dynamic" and rope.get("alpha")
    return {"full": RopeTable(module="model.rotary_emb") if is_static else llama.rope_table(config)}

"""AFMoE (Arcee Trinity)."""

from __future__ import annotations

from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.norm import NormPlan


def afmoe(config: Config) -> DecoderPlan:
    """Norms before and after each sub-layer; gated attention; windows with rotary positions, full layers without."""

    def norm(path: str) -> NormPlan:
        return llama.norm(config, path, is_late=True)

    before, post = norm("pre_mlp_layernorm"), norm("post_mlp_layernorm")
    norms = llama.qk_norm(config, query=norm("self_attn.q_norm"), key=norm("self_attn.k_norm"))

    def attention(layer: int) -> AttentionPlan:
        is_window = config["layer_types"][layer] == "sliding_attention"
        return llama.attention(
            config,
            norm=norm("input_layernorm"),
            post=norm("post_attention_layernorm"),
            qk_norm=norms,
            reach=llama.reach(config, layer),
            gate="self_attn.gate_proj",
            **({} if is_window else {"rope": None}),
        )

    router = mixture.sigmoid_router(
        weight="mlp.router.gate.weight",
        choice_bias="mlp.expert_bias",
        is_float32=False,
        scale=config["route_scale"],
    )
    width = config["moe_intermediate_size"]
    shared = mixture.shared(config, "mlp.shared_experts", width * config["num_shared_experts"])
    experts = mixture.experts(config, router, norm=before, post=post, width=width, shared=shared)
    scale = config["hidden_size"] ** 0.5 if config["mup_enabled"] else 1.0
    return mixture.layered(
        config,
        attention,
        lambda layer: experts if layer >= config["num_dense_layers"] else None,
        dense=llama.mlp(config, norm=before, post=post),
        embedding=EmbeddingPlan(path="model.embed_tokens", scale=scale, is_scale_rounded=False),
        norm=norm("model.norm"),
    )

"""gpt-oss, unpacked."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import RouterPlan
from selfspec_tune.plans.norm import NormPlan


def gpt_oss(config: Config) -> DecoderPlan:
    """Attention sinks, windows in turn; experts transposed, interleaved, clamped and with biases."""

    def norm(path: str) -> NormPlan:
        return llama.norm(config, path, is_late=True)

    router = RouterPlan(weight="mlp.router.weight", bias="mlp.router.bias", is_chosen_first=True, is_rounded=True)
    experts = mixture.experts(
        config,
        router,
        norm=norm("post_attention_layernorm"),
        is_transposed=True,
        is_interleaved=True,
        biases=("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"),
        clamp=config["swiglu_limit"],
        gate_slope=config["swiglu_alpha"],
    )
    return mixture.layered(
        config,
        lambda layer: llama.attention(
            config, norm=norm("input_layernorm"), sinks="self_attn.sinks", reach=llama.reach(config, layer)
        ),
        lambda _: experts,
        norm=norm("model.norm"),
    )

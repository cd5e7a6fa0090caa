"""What mixtures of experts share: their packed weights, usual routers, and which layers have experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Activation, ExpertsPlan, MlpPlan, RouterPlan, Score


def experts(config: Config, router: RouterPlan, at: str = "mlp", **changes: Any) -> ExpertsPlan:
    """Experts at the path ``at`` as most families pack and count them, with ``changes``."""
    given: dict[str, Any] = {
        "silence": (at,),
        "norm": None if "norm" in changes else llama.norm(config, "post_attention_layernorm"),
        "count": None if "count" in changes else count(config),
        "chosen": None if "chosen" in changes else config["num_experts_per_tok"],
        "width": None if "width" in changes else config["intermediate_size"],
        "router": router,
        "gate_up": f"{at}.experts.gate_up_proj",
        "down": f"{at}.experts.down_proj",
        "activation": Activation.SILU if "activation" in changes else llama.activation(config["hidden_act"]),
    }
    return ExpertsPlan(**(given | changes))


def count(config: Config) -> int:
    """How many experts there are, by any of the names that families have for it."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return int(next(config[name] for name in names if name in config))


def is_step(config: Config, layer: int) -> bool:
    """Whether a layer has experts by Qwen's rule: every so many layers, but for those named."""
    is_due = count(config) > 0 and (layer + 1) % config["decoder_sparse_step"] == 0
    return is_due and layer not in config["mlp_only_layers"]


def shared(config: Config, path: str, width: int, **changes: Any) -> MlpPlan | None:
    """The MLP at ``path`` beside the experts, gated as Llama's, with ``changes``; None where its width is 0."""
    given: dict[str, Any] = {
        "silence": (),
        "norm": None,
        "width": width,
        "inputs": (f"{path}.gate_proj", f"{path}.up_proj"),
        "output": f"{path}.down_proj",
    }
    return llama.mlp(config, **(given | changes)) if width else None


def softmax_router(**changes: Any) -> RouterPlan:
    """Softmax of all logits, weights rounded to the model's type."""
    given: dict[str, Any] = {"weight": "mlp.gate.weight", "is_rounded": True}
    return RouterPlan(**(given | changes))


def sigmoid_router(**changes: Any) -> RouterPlan:
    """Sigmoid of logits in float32; a bias has a say in who is chosen; weights over their sum, in float32."""
    given: dict[str, Any] = {
        "weight": "mlp.gate.weight",
        "is_float32": True,
        "score": Score.SIGMOID,
        "choice_bias": "mlp.gate.e_score_correction_bias",
        "renormalise": True,
        "sum_epsilon": 1e-20,
    }
    return RouterPlan(**(given | changes))


def grouped_router(config: Config) -> RouterPlan:
    """DeepSeek V3's: sigmoid, and only the best groups of experts are chosen from."""
    return sigmoid_router(
        groups=config["n_group"],
        kept_groups=config["topk_group"],
        renormalise=config["norm_topk_prob"],
        scale=config["routed_scaling_factor"],
    )


def layered(
    config: Config,
    attention: Callable[[int], AttentionPlan],
    sparse: Callable[[int], ExpertsPlan | None],
    *,
    dense: MlpPlan | None = None,
    **changes: Any,
) -> DecoderPlan:
    """A decoder whose layers have the experts ``sparse`` (number) or, where that is None, Llama's MLP or ``dense``."""

    def layer(index: int) -> LayerPlan:
        return LayerPlan(attention=attention(index), mlp=sparse(index) or dense or llama.mlp(config))

    return llama.decoder(config, layer, **changes)

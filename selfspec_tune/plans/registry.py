"""From a configuration to a plan: the families that are known, and those that are refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import bloom, cohere, gpt2, gpt_neox, llama, opt, phi, qwen

Config = Mapping[str, Any]

FAMILIES: dict[str, Callable[[Config], DecoderPlan]] = {
    "bloom": bloom.bloom,
    "cohere": cohere.cohere,
    "cohere2": cohere.cohere2,
    "falcon": bloom.falcon,
    "gpt2": gpt2.gpt2,
    "gpt_bigcode": gpt2.gpt_bigcode,
    "gpt_neox": gpt_neox.gpt_neox,
    "gptj": gpt2.gptj,
    "llama": llama.llama,
    "mpt": bloom.mpt,
    "opt": opt.opt,
    "phi": phi.phi,
    "qwen2": qwen.qwen2,
    "qwen3": qwen.qwen3,
}
"""By transformers' ``model_type``: what makes a plan of a configuration, given as a dictionary with every default."""

_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}

REFUSED: dict[str, str] = {}
"""By ``model_type``: why no plan can be made, completing "cannot …: "."""


def plan_of(config: Config) -> DecoderPlan:
    """The plan of a model with this configuration, a dictionary with every default filled in.

    Raises `UnsupportedModelError` with the reason alone where the family is unknown or refused, or the configuration
    asks for something that no plan holds.
    """
    model_type = str(config.get("model_type"))
    if model_type in REFUSED:
        raise UnsupportedModelError(REFUSED[model_type])
    if model_type not in FAMILIES:
        raise UnsupportedModelError(f"no plan of the architecture {model_type} is known")
    others = set(config.get("layer_types") or ()) - _ATTENDING
    if others:
        raise UnsupportedModelError(f"it is a hybrid with {', '.join(sorted(others))} layers, which cannot be rewound")
    try:
        return FAMILIES[model_type](config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModelError(f"its configuration cannot be read ({type(error).__name__}: {error})") from error

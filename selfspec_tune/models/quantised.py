"""Checkpoints whose weights are quantised: what by, what that needs, and what else would do."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from selfspec_tune.errors import UsageError

# What transformers loads them with, as pip names it.
_PACKAGES = {
    "aqlm": "aqlm[gpu,cpu]",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "fbgemm-gpu",
    "gptq": "optimum gptqmodel",
    "hqq": "hqq",
    "mxfp4": "kernels triton",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "torchao": "torchao",
    "vptq": "vptq",
}
_ELSE = "What else would do: the checkpoint that it was made from, or a GGUF file, which is dequantised."


def quantised_by(config: Any) -> str | None:
    """What a configuration says that its weights are quantised by, as "gptq"; None: they are plain numbers."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if isinstance(settings, dict):
            if method := settings.get("quant_method"):
                return str(method)
            if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
                return "bitsandbytes"
        # MLX writes its settings under this name, and some of its releases under the other one as well.
        if isinstance(getattr(part, "quantization", None), dict):
            return "mlx"
        if settings is not None:
            return "a method that it does not name"
    return None


def check_known(name: str, method: str | None) -> None:
    """Raise `UsageError` where transformers has no reader for what the weights of model ``name`` are quantised by."""
    # In its table bitsandbytes stands once for each precision.
    if method in (None, "bitsandbytes") or method in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    raise UsageError(f"The model {name!r} is quantised by {method}, which transformers does not read. {_ELSE}")


def cannot_run(name: str, method: str, error: Exception) -> UsageError:
    """The error for quantised weights that transformers cannot load or run on this machine."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights are not packed as its config.json states"
    packages = f" It needs: pip install {_PACKAGES[method]}." if method in _PACKAGES else ""
    return UsageError(
        f"The model {name!r} is quantised by {method}, and transformers cannot run it here: {reason}.{packages} {_ELSE}"
    )


def try_out(model: PreTrainedModel) -> None:
    """One token through a model whose kernels may be missing; raises what they raise."""
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)

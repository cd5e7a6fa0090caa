"""Checkpoints whose weights are quantised: what by, what that needs, and what else would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_settings

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
# What runs those that transformers does not read.
_RUN_BY = {
    "compression_config": "vLLM (llm-compressor writes such checkpoints anew for transformers)",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "mlx": "mlx-lm",
    "modelopt": "TensorRT-LLM, vLLM or SGLang",
}
_MODELOPT = "hf_quant_config.json"  # of NVIDIA's ModelOpt, beside a config.json that may say nothing
_PACKED_NAMES = ("qweight", "weight_packed", "absmax", "quant_map", "SCB", "weight_scale", "weight_scale_inv")
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
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
        if isinstance(getattr(part, "compression_config", None), dict):
            return "compressed-tensors of old (compression_config)"
        # MLX writes its settings under this name, and some of its releases under the other one as well.
        if isinstance(getattr(part, "quantization", None), dict):
            return "mlx"
        if settings is not None:
            return "a method that it does not name"
    return None


def by_its_files(folder: Path) -> str | None:
    """What the files beside a configuration say that the weights are quantised by, as "modelopt NVFP4"."""
    if not (folder / _MODELOPT).is_file():
        return None
    settings = read_settings(folder / _MODELOPT).get("quantization")
    algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
    return f"modelopt {algorithm}" if algorithm else None  # it may be about the cache alone


def packed_tensor(folder: Path) -> str | None:
    """A tensor of the checkpoint in ``folder`` that only quantised weights have; None where all are plain numbers."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    is_named = name.rsplit(".", 1)[-1] in _PACKED_NAMES
                    is_weight = name.endswith("_proj.weight")
                    if is_named or (is_weight and tensors.get_slice(name).get_dtype() not in _PLAIN_DTYPES):
                        return str(name)
        except (SafetensorError, OSError):
            continue
    return None


def is_plain(folder: Path) -> bool:
    """Whether the checkpoint in ``folder`` holds safetensors, and nothing in them is quantised."""
    return any(folder.glob("*.safetensors")) and packed_tensor(folder) is None


def unstated(name: str, tensor: str) -> UsageError:
    """The error for weights that are quantised, as their ``tensor`` shows, where no file says by what."""
    return UsageError(
        f"The weights of model {name!r} are quantised, as its tensor {tensor} shows, in a way that its config.json "
        f"does not state, so transformers cannot read them. What wrote them may run them. {_ELSE}"
    )


def check_known(name: str, method: str | None) -> None:
    """Raise `UsageError` where transformers has no reader for what the weights of model ``name`` are quantised by."""
    # In its table bitsandbytes stands once for each precision.
    if method in (None, "bitsandbytes") or method in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    runs = next((f" What runs it: {what}." for key, what in _RUN_BY.items() if key in str(method)), "")
    raise UsageError(f"The model {name!r} is quantised by {method}, which transformers does not read.{runs} {_ELSE}")


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

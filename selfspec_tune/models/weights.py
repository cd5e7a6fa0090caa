"""Weights as they must be: numbers, all read, and of a quantisation that runs here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import read_settings
from selfspec_tune.models.auto import AutoModelForCausalLM
from selfspec_tune.models.model_files import is_lfs_pointer

_CHECKED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
# Tables that are made anew, of the architecture's own numbers.
_MADE_ANEW = re.compile(r"(inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias|position_ids)$")
_SCALES = ("scale", "scales", "scale_inv", "qzeros", "absmax", "scale_2", "zero_point")
_SHOWN = 3
_MOST_A_BYTE = 8  # weights; no format stores one in less than a bit
_FEW_WEIGHTS = 2**26  # what is made in no time
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


def is_packed(model: PreTrainedModel) -> bool:
    """Whether its weights stay quantised: transformers unpacks some where it cannot compute with them."""
    return bool(getattr(model, "is_quantized", False))


def num_bytes_stored(folder: Path) -> int:
    """Bytes of the files of weights in a checkpoint's folder, those that are not there yet left out."""
    files = [file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    return sum(file.stat().st_size for file in files if file.exists() and not is_lfs_pointer(file))


def check_stated_size(where: Path, config: PreTrainedConfig, num_bytes: int) -> None:
    """Raise `FileFormatError` where ``config`` states far more weights than ``num_bytes`` of files can hold.

    transformers would make them all, with random values, before it compares a shape.
    """
    with torch.device("meta"):
        stated = AutoModelForCausalLM.from_config(deepcopy(config)).num_parameters()
    if stated > _MOST_A_BYTE * num_bytes + _FEW_WEIGHTS:
        raise FileFormatError(
            f"{where} states the sizes of {stated:,} weights, and there are {num_bytes:,} bytes of them. It is "
            "damaged, or files of weights are missing: get it again, and all that belongs to it."
        )


def check_weights(model: nn.Module, name: str) -> None:
    """Look at every weight once, which takes less than reading it from a disk; ``name``: the model's, for messages.

    Raises:
        FileFormatError: a weight is NaN, or infinite in a type that holds what checkpoints hold.
        UsageError: a weight is infinite in float16, which holds less.
    """
    for tensor, parameter in model.named_parameters():
        if is_finite(parameter):
            continue
        if parameter.dtype == torch.float16 and not bool(parameter.isnan().any()):
            raise UsageError(
                f"The tensor {tensor} of {name!r} has infinite values in float16, which ends at 65504. Use `dtype` "
                "bfloat16 or `dtype` float32; if they are infinite there too, the checkpoint is broken: get it again."
            )
        kind = "NaN" if bool(parameter.isnan().any()) else "infinite"
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise FileFormatError(
            f"The tensor {tensor} of {name!r} has values that are {kind} ({dtype}): the model computes nothing. Its "
            "checkpoint is broken: get it again."
        )


def is_finite(weight: Tensor) -> bool:
    """Whether all values are numbers; True for what is no plain floating-point type, and for empty tensors."""
    if weight.dtype not in _CHECKED or weight.is_meta or not weight.numel():
        return True
    low, high = torch.aminmax(weight.detach())  # a NaN is both
    return isfinite(float(low)) and isfinite(float(high))


def check_all_read(name: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raise `FileFormatError` where ``unread`` tensors belong to the decoder that was loaded.

    Towers of images or sound, and heads for other uses, are no part of it.
    """
    modules = {path for path, _ in model.named_modules()}
    prefix = f"{model.base_model_prefix}."
    lost = (key for key in unread if not _MADE_ANEW.search(key) and _is_of_decoder(key, prefix, modules))
    refuse_unread(name, model, lost)


def refuse_unread(name: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raise `FileFormatError` by name where ``unread``, tensors that matter, are any."""
    lost = sorted(unread)
    if not lost:
        return
    some = ", ".join(lost[:_SHOWN]) + (", …" if len(lost) > _SHOWN else "")
    cause = (
        "It is quantised in a way that its config.json does not state"
        if any(key.rsplit(".", 1)[-1].endswith(_SCALES) for key in lost)
        else "Its configuration is of another architecture, of fewer layers, or an adapter was never merged"
    )
    raise FileFormatError(
        f"{name!r} holds {len(lost)} tensors that its {type(model).__name__} has no place for ({some}), so another "
        f"model would be measured. {cause}. Give the checkpoint that it was made from."
    )


def _is_of_decoder(key: str, prefix: str, modules: set[str]) -> bool:
    """Whether a tensor lies in the stack of layers, or beside a tensor that was read."""
    if key == "lm_head.weight":  # stored although it is tied
        return False
    owner = key.rpartition(".")[0]
    candidates = {owner, f"{prefix}{owner}", owner.removeprefix(prefix)} - {""}
    stack = rf"({re.escape(prefix)})?((decoder|language_model)\.)?(layers|h|blocks)\.\d+\."
    in_layers = any(re.match(stack, f"{each}.") for each in candidates)
    return in_layers or not candidates.isdisjoint(modules)


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

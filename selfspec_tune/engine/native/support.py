"""Which models the kernels can read."""

from __future__ import annotations

import torch

from selfspec_tune.engine.native.library import MAX_HEAD_SIZE, load_library
from selfspec_tune.engine.native.weights import FORMATS
from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.models import LoadedModel


def native_unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the native runner cannot serve a model that the fast runner can; None where it does."""
    if loaded.device.type != "cpu":
        return f"the native kernels run on a CPU, not on {loaded.device}"
    if (reason := _unread_reason(loaded)) is not None:
        return reason
    try:
        load_library()
    except NativeUnavailableError as error:
        return str(error)
    return None


def _unread_reason(loaded: LoadedModel) -> str | None:
    """What about the weights the kernels cannot read; None where they can."""
    model, config = loaded.model, loaded.model.config
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if head_size > MAX_HEAD_SIZE:
        return f"the native kernels have heads of up to {MAX_HEAD_SIZE}, not {head_size}"
    for name, weight in model.named_parameters():
        is_vector = weight.dim() < 2  # norms and biases are copied to float32
        if weight.dtype not in FORMATS:
            return f"the native kernels read bfloat16 and float32, and {name} is {_name(weight.dtype)}"
        if not is_vector and not weight.is_contiguous():
            return f"the native kernels read contiguous weights, and {name} is strided"
    embedded: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    if embedded != loaded.dtype:
        return f"its embedding is {_name(embedded)}, and the model {_name(loaded.dtype)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

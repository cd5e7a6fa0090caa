"""Weights that are numbers: one that is not makes every logit NaN."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor, nn

from selfspec_tune.errors import FileFormatError, UsageError

_CHECKED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


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
                f"The tensor {tensor} of {name!r} has infinite values in float16, which ends at 65504. Use --dtype "
                "bfloat16 or --dtype float32; if they are infinite there too, the checkpoint is broken: get it again."
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

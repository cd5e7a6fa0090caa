"""Fused projections that own the storage, the model's own parameters being views of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from selfspec_tune.engine.resident import is_mapped, let_go, roomy


def fuse(projections: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Stack linear layers over one input into one weight [sum of outputs, inputs] and one bias.

    Afterwards each layer's parameters are views of the stack: `model.generate` still runs
    and no weight is held twice. Layers that are already views of one stack are left alone,
    unless that stack is a file mapped into memory: every step reads them, so they get memory of their own.
    """
    weight = _stack([layer.weight for layer in projections])
    biases = [layer.bias for layer in projections if layer.bias is not None]
    if not biases:
        return weight, None
    if len(biases) != len(projections):
        raise ValueError("some of the projections have a bias and some have none")
    return weight, _stack(biases)


def _stack(parameters: Sequence[nn.Parameter]) -> Tensor:
    first = parameters[0].data
    rows = sum(p.shape[0] for p in parameters)
    shape = (rows, *first.shape[1:])
    if _adjacent(parameters) and not is_mapped(first):
        return first.as_strided(shape, first.stride())
    stack = roomy(shape, first.dtype, first.device)
    start = 0
    for parameter in parameters:
        end = start + parameter.shape[0]
        stack[start:end] = parameter.data
        let_go(parameter.data)
        parameter.data = stack[start:end]
        start = end
    return stack


def _adjacent(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether the parameters already lie one behind the other in one storage."""
    storage = parameters[0].data.untyped_storage().data_ptr()
    expected = parameters[0].data.data_ptr()
    for parameter in parameters:
        data = parameter.data
        if data.untyped_storage().data_ptr() != storage or data.data_ptr() != expected or not data.is_contiguous():
            return False
        expected += data.numel() * data.element_size()
    return True

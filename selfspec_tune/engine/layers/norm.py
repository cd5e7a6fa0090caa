"""Norms by their plans, over the model's own weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import NormPlan
from selfspec_tune.plans.norm import NormKind


class Norm:
    """A norm over the last dimension of [..., size]; rounds once, at its end.

    Where a model rounds before the weight too (`NormPlan.is_late`), this is nearer to float32, and one operation less.
    ``weight`` and ``bias`` [size] are None where there are none. What is stored minus one is held whole, in float32
    where the model adds the one there.
    """

    def __init__(self, plan: NormPlan, bound: BoundModel, layer: int | None = None) -> None:
        self.plan = plan
        self.epsilon = plan.epsilon
        module = bound.module(plan.path, layer) if plan.has_weight else None
        bias = getattr(module, "bias", None)
        self.weight = None if module is None else _whole(plan, module.weight.data)
        self.bias: Tensor | None = None if bias is None else bias.data

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.weight is None or self.weight.dtype is hidden.dtype:
            return _normalise(self.plan.kind, hidden, self.weight, self.bias, self.epsilon)
        return _normalise(self.plan.kind, hidden.float(), self.weight, self.bias, self.epsilon).to(hidden.dtype)


class HeadNorm:
    """A norm of each head of [tokens, heads, size], whose ``weight`` and ``bias`` are [heads, size]."""

    def __init__(self, plan: NormPlan, bound: BoundModel, layer: int) -> None:
        self.plan = plan
        self.epsilon = plan.epsilon
        module = bound.module(plan.path, layer)
        parts = list(module) if isinstance(module, torch.nn.ModuleList) else None
        self.weight = _whole(plan, _stacked("weight", module, parts))
        has_bias = getattr((parts or [module])[0], "bias", None) is not None
        self.bias = _stacked("bias", module, parts) if has_bias else None

    def __call__(self, heads: Tensor) -> Tensor:
        weighted = _normalise(self.plan.kind, heads.float(), None, None, self.epsilon) * self.weight
        return (weighted if self.bias is None else weighted + self.bias).to(heads.dtype)


def _stacked(name: str, module: Any, parts: list[Any] | None) -> Tensor:
    if parts is None:
        found: Tensor = getattr(module, name).data
        return found
    return torch.stack([getattr(part, name).data for part in parts])


def _whole(plan: NormPlan, weight: Tensor) -> Tensor:
    if not plan.one_plus:
        return weight
    return weight.float() + 1 if plan.kind is NormKind.RMS else weight + 1  # as Gemma does, and as Nemotron does


def _normalise(kind: NormKind, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    shape = hidden.shape[-1:]
    if kind is NormKind.RMS:
        return F.rms_norm(hidden, shape, weight, epsilon)
    return F.layer_norm(hidden, shape, weight, bias, epsilon)

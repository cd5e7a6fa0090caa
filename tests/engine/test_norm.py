"""Norms of our own loops against transformers' modules, in bfloat16: where they round."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from selfspec_tune.engine.layers.norm import Norm
from selfspec_tune.models.auto import AutoModelForCausalLM
from selfspec_tune.plans import NormPlan, plan_of
from selfspec_tune.plans.norm import NormKind
from tests.families import FAMILIES

ONE_STEP = 2.0**-7  # of bfloat16, as a share of the number


def test_norms_are_the_model_s_or_round_once_less() -> None:
    """Equal where the model rounds at the end alone. Where it rounds twice, ours are a step away, and more exact."""
    generator = torch.Generator().manual_seed(0)
    for plan, module in _norms():
        for name, parameter in module.named_parameters():
            centre = 1.0 if name == "weight" and not plan.one_plus else 0.0
            parameter.data = (centre + 0.3 * torch.randn(parameter.shape, generator=generator)).bfloat16()
        hidden = (3 * torch.randn(32, 96, generator=generator)).bfloat16()
        bound: Any = SimpleNamespace(module=lambda path, layer, its=module: its)
        with torch.inference_mode():
            ours, theirs = Norm(plan, bound)(hidden), module(hidden)
        if plan.is_late:
            assert torch.equal(ours, theirs), type(module)
        else:
            assert ((ours - theirs).abs() <= ONE_STEP * theirs.abs()).all(), type(module)
            exact = _exact(plan, module, hidden)
            assert (ours - exact).abs().mean() < (theirs - exact).abs().mean(), type(module)


def _norms() -> Iterator[tuple[NormPlan, nn.Module]]:
    """One of every class that families normalise their stream by, with its plan."""
    seen = set()
    for family in FAMILIES.values():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**family.config))
        plan = plan_of(model.config.to_dict())
        first = plan.layers[0].attention
        norms = {norm.path: norm for norm in (first.norm, first.post) if norm is not None}
        of_layer = {f"{plan.layer_path(0)}.{path}": norm for path, norm in norms.items()}
        last = {} if plan.norm is None else {plan.norm.path: plan.norm}
        for path, norm in (of_layer | last).items():
            kind = type(model.get_submodule(path)) if norm.has_weight else None
            if kind is not None and kind not in seen:
                seen.add(kind)
                yield norm, model.get_submodule(path).to_empty(device="cpu")


def _exact(plan: NormPlan, module: nn.Module, hidden: Tensor) -> Tensor:
    """An RMSNorm in float64."""
    assert plan.kind is NormKind.RMS
    assert isinstance(module.weight, Tensor)
    wide = hidden.double()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + plan.epsilon)
    return wide * scale * (module.weight.double() + plan.one_plus)

"""Which sub-layers cost the same, told by a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoConfig

from selfspec_tune.draft.sublayer import SubLayerKind
from selfspec_tune.plans import ExpertsPlan, MlpPlan, plan_of
from selfspec_tune.plans.cost_class import classes_by_kind, cost_classes
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.mlp import RouterPlan
from tests.families import FAMILIES


def plan(family: str) -> DecoderPlan:
    return plan_of(AutoConfig.for_model(**FAMILIES[family].config).to_dict())


@pytest.mark.parametrize("family", ["llama", "smollm3", "gemma", "glm4"])
def test_sublayers_that_differ_in_numbers_alone_cost_the_same(family: str) -> None:
    found = plan(family)
    assert cost_classes(found) == classes_by_kind(found.num_layers)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo3", "qwen2-window"])
def test_windows_cost_something_else_than_full_attentions(family: str) -> None:
    local, mlp, full = cost_classes(plan(family))
    assert (local.name, local.sublayers) == ("attention in a window of 8", (0, 6))
    assert (mlp.name, mlp.sublayers) == ("MLP", (1, 3, 5, 7))
    assert (full.name, full.sublayers) == ("attention", (2, 4))
    assert [one.is_plain for one in (local, mlp, full)] == [False, True, True]
    assert [local.reach.seen(before) for before in (0, 7, 8, 1000)] == [0, 7, 7, 7]
    assert (local.reach.most_seen, full.reach.most_seen) == (7, None)


def test_experts_and_mlps_of_several_widths_are_classes_of_their_own() -> None:
    dense = plan("llama")
    first, second, third = dense.layers
    assert isinstance(second.mlp, MlpPlan)
    router = RouterPlan(weight="gate.weight")
    experts = ExpertsPlan(silence=("mlp",), count=8, chosen=2, width=16, router=router, gate_up="a", down="b")
    layers = (first, replace(second, mlp=replace(second.mlp, width=7)), replace(third, mlp=experts))
    classes = cost_classes(replace(dense, layers=layers))
    assert [(one.name, one.kind, one.sublayers, one.experts) for one in classes] == [
        ("attention", SubLayerKind.ATTENTION, (0, 2, 4), 0),
        ("MLP", SubLayerKind.MLP, (1,), 0),
        ("MLP 2", SubLayerKind.MLP, (3,), 0),
        ("experts", SubLayerKind.MLP, (5,), 2),
    ]

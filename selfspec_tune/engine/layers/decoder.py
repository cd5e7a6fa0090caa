"""All sub-layers of a decoder, made from its plan."""

from __future__ import annotations

from selfspec_tune.draft.sublayer import SubLayerId, sublayers_of
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.cache import CacheState
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.mlp import Mlp
from selfspec_tune.engine.layers.sublayer import SubLayer
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan, MlpPlan


def make_sublayers(bound: BoundModel, state: CacheState) -> list[SubLayer]:
    """The 2L sub-layers of a decoder with L layers in running order, all over one cache."""
    return [_make(bound, state, sublayer) for sublayer in sublayers_of(bound.plan.num_layers)]


def _make(bound: BoundModel, state: CacheState, sublayer: SubLayerId) -> SubLayer:
    plan, layer = bound.plan.half(sublayer), sublayer.layer
    if isinstance(plan, AttentionPlan):
        return Attention(plan, bound, layer, state)
    return Mlp(plan, bound, layer) if isinstance(plan, MlpPlan) else Experts(plan, bound, layer)

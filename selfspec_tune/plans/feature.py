"""What a plan needs beyond Llama's: the words in which an engine says what it serves, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from selfspec_tune.plans.attention import (
    AttentionPlan,
    QkNormKind,
    QkNormPlan,
    ReachKind,
    RopePairs,
    RopePlan,
    WeightOrder,
)
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, LayerPlan
from selfspec_tune.plans.mlp import Activation, ExpertsPlan, MlpPlan, RouterPlan, Score
from selfspec_tune.plans.norm import NormKind, NormPlan
from selfspec_tune.plans.sublayer import SubLayerPlan


class Feature(StrEnum):
    """One thing that an engine must be able to do; its value completes "has no …"."""

    LAYER_NORM = "LayerNorm"
    NORM_WITHOUT_WEIGHT = "norms without a weight"
    ONE_PLUS_NORM = "norm weights stored minus one"
    LATE_NORM = "norm weights applied in float32"
    UNNORMED_INPUT = "sub-layers that read the stream without a norm"
    POST_NORM = "norms of a sub-layer's output"
    INNER_NORM = "norms before an output layer"
    PARALLEL = "attention and MLP side by side"
    RESIDUAL_SCALE = "scaled residuals"
    EMBEDDING_SCALE = "scaled embeddings"
    LEARNED_POSITIONS = "learned positions"
    EMBEDDING_NORM = "norm after the embedding"
    LOGIT_SCALE = "scaled logits"
    LOGIT_CAP = "capped logits"
    STACKED = "weights stacked in the checkpoint"
    GROUPED = "queries, keys and values grouped by KV head"
    TRANSPOSED = "transposed weights"
    CLIP = "clamped queries, keys and values"
    CLIP_LATE = "queries and keys clamped behind their norms"
    QK_NORM = "norms of queries and keys"
    QK_NORM_EACH_HEAD = "norms of queries and keys with weights for each head"
    QK_NORM_WIDTH = "norms of queries and keys over their width"
    QK_NORM_LATE = "norms of queries and keys after rotation"
    PARTIAL_ROPE = "rotary positions over a part of a head"
    ADJACENT_ROPE = "rotary positions of adjacent pairs"
    ROPE_IN_FLOAT32 = "rotary positions in float32"
    NO_ROPE = "attentions without rotary positions"
    ROPE_BY_LAYER = "several tables of rotary positions"
    LONG_ROPE = "rotary positions that depend on the length"
    GROWTH = "queries that grow with their position"
    WINDOW = "sliding windows"
    CHUNK = "chunked attention"
    SCORE_CAP = "capped attention scores"
    SINKS = "attention sinks"
    DISTANCE_BIAS = "scores that fall with distance (ALiBi)"
    GATE = "gated attention outputs"
    SHAPE_BY_LAYER = "attentions of several shapes"
    PLAIN_MLP = "MLPs without a gate"
    GELU = "GELU"
    GELU_TANH = "GELU-tanh"
    RELU = "ReLU"
    RELU2 = "ReLU²"
    XIELU = "xIELU"
    EXPERTS = "mixtures of experts"
    SIGMOID_ROUTER = "routers by sigmoid"
    CHOICE_BIAS = "routers that choose by other scores than they weigh by"
    EXPERT_GROUPS = "experts chosen by groups"
    SHARED_EXPERTS = "shared experts"
    INPUT_WEIGHTS = "routers that weigh what experts read"
    TRANSPOSED_EXPERTS = "transposed experts"
    INTERLEAVED_EXPERTS = "experts with gate and up interleaved"
    EXPERT_BIASES = "experts with biases"
    CLAMPED_EXPERTS = "experts with clamped gates"
    ROUTER_IN_FLOAT32 = "routers in float32"
    ROUNDED_WEIGHTS = "weights of experts rounded to the model's type"
    ROUTER_BIAS = "routers with a bias"
    CHOSEN_FIRST = "routers that score the chosen alone"


_ACTIVATIONS = {
    Activation.GELU: Feature.GELU,
    Activation.GELU_TANH: Feature.GELU_TANH,
    Activation.RELU: Feature.RELU,
    Activation.RELU2: Feature.RELU2,
    Activation.XIELU: Feature.XIELU,
}


def features(plan: DecoderPlan) -> frozenset[Feature]:
    """All that ``plan`` needs beyond what a Llama does."""
    return frozenset(_of_decoder(plan))


def _of_decoder(plan: DecoderPlan) -> Iterator[Feature]:
    embedding, head = plan.embedding, plan.head
    if embedding.scale != 1:
        yield Feature.EMBEDDING_SCALE
    if embedding.positions is not None:
        yield Feature.LEARNED_POSITIONS
    if embedding.norm is not None:
        yield Feature.EMBEDDING_NORM
        yield from _of_norm(embedding.norm)
    yield from _of_norm(plan.norm)
    if head.scale != 1:
        yield Feature.LOGIT_SCALE
    if head.cap is not None:
        yield Feature.LOGIT_CAP
    if len(plan.ropes) > 1:
        yield Feature.ROPE_BY_LAYER
    if any(table.longest is not None for table in plan.ropes.values()):
        yield Feature.LONG_ROPE
    attentions = [layer.attention for layer in plan.layers]
    shapes = {(each.num_heads, each.num_kv_heads, each.head_size) for each in attentions}
    if len(shapes) > 1:
        yield Feature.SHAPE_BY_LAYER
    for layer in dict.fromkeys(plan.layers):  # most layers are alike
        yield from _of_layer(layer)


def _of_layer(layer: LayerPlan) -> Iterator[Feature]:
    if layer.order is BlockOrder.PARALLEL:
        yield Feature.PARALLEL
    yield from _of_attention(layer.attention)
    mlp = layer.mlp
    yield from _of_sublayer(mlp)
    if isinstance(mlp, MlpPlan):
        yield from _of_mlp(mlp)
    else:
        yield from _of_experts(mlp)


def _of_sublayer(sublayer: SubLayerPlan) -> Iterator[Feature]:
    if sublayer.norm is None:
        yield Feature.UNNORMED_INPUT
    if sublayer.post is not None:
        yield Feature.POST_NORM
    if sublayer.residual_scale != 1:
        yield Feature.RESIDUAL_SCALE
    yield from _of_norm(sublayer.norm)
    yield from _of_norm(sublayer.post)


def _of_norm(norm: NormPlan | None) -> Iterator[Feature]:
    if norm is None:
        return
    if norm.kind is NormKind.LAYER:
        yield Feature.LAYER_NORM
    elif norm.is_late:  # a LayerNorm always is
        yield Feature.LATE_NORM
    if not norm.has_weight:
        yield Feature.NORM_WITHOUT_WEIGHT
    if norm.one_plus:
        yield Feature.ONE_PLUS_NORM


def _of_attention(plan: AttentionPlan) -> Iterator[Feature]:
    yield from _of_sublayer(plan)
    if plan.order is not WeightOrder.SEPARATE:
        yield Feature.STACKED if plan.order is WeightOrder.STACKED else Feature.GROUPED
    told = {
        Feature.TRANSPOSED: plan.is_transposed,
        Feature.CLIP: plan.clip is not None,
        Feature.CLIP_LATE: plan.clip is not None and plan.is_clip_late,
        Feature.GROWTH: plan.growth is not None,
        Feature.WINDOW: plan.reach.kind is ReachKind.WINDOW,
        Feature.CHUNK: plan.reach.kind is ReachKind.CHUNK,
        Feature.SCORE_CAP: plan.cap is not None,
        Feature.SINKS: plan.sinks is not None,
        Feature.DISTANCE_BIAS: plan.alibi is not None,
        Feature.GATE: plan.gate is not None,
        Feature.INNER_NORM: plan.inner is not None,
    }
    yield from (feature for feature, is_needed in told.items() if is_needed)
    yield from _of_norm(plan.inner)
    yield from _of_rope(plan.rope, plan.head_size)
    yield from _of_qk_norm(plan.qk_norm)


def _of_rope(rope: RopePlan | None, head_size: int) -> Iterator[Feature]:
    if rope is None:
        yield Feature.NO_ROPE
        return
    if rope.size != head_size:
        yield Feature.PARTIAL_ROPE
    if rope.pairs is RopePairs.ADJACENT:
        yield Feature.ADJACENT_ROPE
    if rope.in_float32:
        yield Feature.ROPE_IN_FLOAT32


def _of_qk_norm(plan: QkNormPlan | None) -> Iterator[Feature]:
    if plan is None:
        return
    kinds = {
        QkNormKind.HEAD: Feature.QK_NORM,
        QkNormKind.EACH_HEAD: Feature.QK_NORM_EACH_HEAD,
        QkNormKind.WIDTH: Feature.QK_NORM_WIDTH,
    }
    yield kinds[plan.kind]
    if plan.is_after_rope:
        yield Feature.QK_NORM_LATE
    yield from _of_norm(plan.query)
    yield from _of_norm(plan.key)


def _of_mlp(plan: MlpPlan) -> Iterator[Feature]:
    if not plan.is_gated:
        yield Feature.PLAIN_MLP
    if plan.is_gated and len(plan.inputs) == 1:
        yield Feature.STACKED
    if plan.is_transposed:
        yield Feature.TRANSPOSED
    if plan.activation is not Activation.SILU:
        yield _ACTIVATIONS[plan.activation]
    if plan.inner is not None:
        yield Feature.INNER_NORM
        yield from _of_norm(plan.inner)


def _of_experts(plan: ExpertsPlan) -> Iterator[Feature]:
    yield Feature.EXPERTS
    if plan.activation is not Activation.SILU:
        yield _ACTIVATIONS[plan.activation]
    told = {
        Feature.TRANSPOSED_EXPERTS: plan.is_transposed,
        Feature.INTERLEAVED_EXPERTS: plan.is_interleaved,
        Feature.EXPERT_BIASES: plan.biases is not None,
        Feature.CLAMPED_EXPERTS: plan.clamp is not None or plan.gate_slope is not None,
    }
    yield from (feature for feature, is_needed in told.items() if is_needed)
    yield from _of_router(plan.router)
    if plan.shared is not None:
        yield Feature.SHARED_EXPERTS
        yield from _of_mlp(plan.shared)


def _of_router(router: RouterPlan) -> Iterator[Feature]:
    told = {
        Feature.SIGMOID_ROUTER: router.score is Score.SIGMOID,
        Feature.CHOICE_BIAS: router.choice_bias is not None,
        Feature.EXPERT_GROUPS: router.groups > 1,
        Feature.INPUT_WEIGHTS: router.on_input,
        Feature.ROUTER_IN_FLOAT32: router.is_float32,
        Feature.ROUNDED_WEIGHTS: router.is_rounded,
        Feature.ROUTER_BIAS: router.bias is not None,
        Feature.CHOSEN_FIRST: router.is_chosen_first,
    }
    yield from (feature for feature, is_needed in told.items() if is_needed)

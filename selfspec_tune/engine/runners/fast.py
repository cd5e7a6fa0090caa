"""The fast runner: our own loop over the model's own weights.

Preallocated KV cache, rewinding by moving a length, no mask built per step, fused QKV and
gate/up projections; a skipped sub-layer costs nothing, its norms included. Serves what a plan
(`selfspec_tune.plans`) describes by the features in `FastRunner.SERVES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind, sublayers_of
from selfspec_tune.engine.known_ids import KnownIds
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.cache import CacheState
from selfspec_tune.engine.layers.copies import DraftCopies, Key
from selfspec_tune.engine.layers.embedding import Embedding
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.head import Head
from selfspec_tune.engine.layers.linear import Dense, Joined, Projection
from selfspec_tune.engine.layers.lowbit import refusal
from selfspec_tune.engine.layers.mlp import Mlp
from selfspec_tune.engine.layers.quantize import Meter, Moments
from selfspec_tune.engine.layers.rope import Rotation
from selfspec_tune.engine.layers.sublayer import Stream, SubLayer
from selfspec_tune.engine.runner import Scores, Want, check_cache, check_experts, check_room, scored
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.bound import BoundModel, bind
from selfspec_tune.plans import AttentionPlan, Feature, MlpPlan

_SERVES = frozenset(
    {
        *(Feature.LAYER_NORM, Feature.NORM_WITHOUT_WEIGHT, Feature.ONE_PLUS_NORM, Feature.LATE_NORM),
        *(Feature.UNNORMED_INPUT, Feature.POST_NORM, Feature.INNER_NORM, Feature.PARALLEL, Feature.RESIDUAL_SCALE),
        *(Feature.EMBEDDING_SCALE, Feature.LEARNED_POSITIONS, Feature.EMBEDDING_NORM),
        *(Feature.LOGIT_SCALE, Feature.LOGIT_CAP),
        *(Feature.STACKED, Feature.GROUPED, Feature.TRANSPOSED, Feature.CLIP, Feature.CLIP_LATE),
        *(Feature.QK_NORM, Feature.QK_NORM_EACH_HEAD, Feature.QK_NORM_WIDTH, Feature.QK_NORM_LATE),
        *(Feature.PARTIAL_ROPE, Feature.ADJACENT_ROPE, Feature.ROPE_IN_FLOAT32, Feature.NO_ROPE, Feature.ROPE_BY_LAYER),
        Feature.LONG_ROPE,
        *(Feature.GROWTH, Feature.WINDOW, Feature.CHUNK, Feature.SCORE_CAP, Feature.SINKS, Feature.DISTANCE_BIAS),
        Feature.GATE,
        *(Feature.PLAIN_MLP, Feature.GELU, Feature.GELU_TANH, Feature.RELU, Feature.RELU2, Feature.XIELU),
        *(Feature.EXPERTS, Feature.SIGMOID_ROUTER, Feature.CHOICE_BIAS, Feature.EXPERT_GROUPS, Feature.SHARED_EXPERTS),
        *(Feature.INPUT_WEIGHTS, Feature.TRANSPOSED_EXPERTS, Feature.INTERLEAVED_EXPERTS, Feature.EXPERT_BIASES),
        *(Feature.CLAMPED_EXPERTS, Feature.ROUTER_IN_FLOAT32, Feature.ROUNDED_WEIGHTS, Feature.ROUTER_BIAS),
        Feature.CHOSEN_FIRST,
    }
)


class FastRunner:
    """Runs one sequence through a model that its plan describes; see `Runner` for the meaning of each call."""

    name = "fast"
    SERVES: frozenset[Feature] = _SERVES

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        bound = bind(loaded.model)
        self.plan = bound.plan
        self._head = Head(bound)
        self._embedding = Embedding(bound)  # after the head, which may have moved a tied weight
        self.num_layers = loaded.num_layers
        self.vocabulary_size = int(self._head.dense.weight.shape[0])
        self._state = CacheState(bound, loaded.dtype, loaded.device)
        self._sublayers = [_make(bound, self._state, sublayer) for sublayer in sublayers_of(self.num_layers)]
        self._copies = self._new_copies()
        self._length = 0
        self.set_draft(Draft(SkipSet.empty(self.num_layers)))

    @property
    def about(self) -> str:
        return self._loaded.name_and_dtype

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._state.capacity

    @torch.inference_mode()
    def reserve(self, capacity: int) -> None:
        if capacity > self._state.capacity:
            check_room(capacity, self._loaded.context_length)
            self._length = 0
            self._state.allocate(min(self._rounded(capacity), self._loaded.context_length))

    @torch.inference_mode()
    def release(self) -> None:
        """Let the cache go; the next reservation makes one of its own size."""
        self._length = 0
        self._state.allocate(0)

    def set_draft(self, draft: Draft) -> None:
        """Raises `UsageError` where its copies exceed `extra_memory_bytes` or the model has not so many experts, and
        `UnsupportedPrecisionError` where torch cannot compute with its copies."""
        check_experts(draft, self._loaded)
        keys = self._copies_of(draft)
        self._forget(self._copies.make_room(keys))  # first: making a copy may fail
        self._copies.require(keys)
        self._draft_sublayers = [
            self._sublayer(sublayer.index, precision, draft.experts) for sublayer, precision in draft.kept()
        ]
        self._known = KnownIds(draft, self.vocabulary_size, self.device)
        self._draft_share = self._draft_head = self._head_at(draft.precision.head, draft.vocabulary)

    @torch.inference_mode()
    def know(self, tokens: Iterable[int]) -> None:
        if self._known.add(tokens):
            self._hold(self._head.dense.rows(self._known.others))

    @property
    def draft_ids(self) -> Tensor | None:
        return self._known.ids

    @property
    def extra_memory_bytes(self) -> int | None:
        """Most bytes of low-precision copies that drafts may hold; None: no limit."""
        return self._copies.limit

    @extra_memory_bytes.setter
    def extra_memory_bytes(self, limit: int | None) -> None:
        self._copies.limit = limit

    def copy_bytes(self, draft: Draft) -> int:
        """Bytes of low-precision copies that ``draft`` needs."""
        return sum(self._copies.bytes_of(key) for key in self._copies_of(draft))

    def precision_refusal(self, precision: Precision) -> str | None:
        """Why sub-layers of this model cannot be drafted at ``precision`` here, None where they can."""
        if precision is Precision.SAME:
            return None
        dtype, device = self._loaded.dtype, self._loaded.device
        widths = {int(dense.weight.shape[1]) for sublayer in self._sublayers for dense in sublayer.projections}
        reasons = (refusal(precision, device, dtype, width, self._copies.settings) for width in sorted(widths))
        return next((reason for reason in reasons if reason is not None), None)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        hidden = self._run(tokens, self._draft_sublayers if is_draft else self._sublayers)
        logits = self._head(hidden[-1:] if last_only else hidden, self._draft_head if is_draft else None)
        if is_draft:
            logits = self._known.spread(logits)
        return scored(logits, want, self, tokens, is_draft=is_draft)

    def rewind(self, length: int) -> None:
        self._length = min(length, self._length)

    def synchronize(self) -> None:
        if self._loaded.device.type == "cuda":
            torch.cuda.synchronize(self._loaded.device)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of one layer's cached keys and values, [kv heads, length, head size] each, keys rotated."""
        state = self._state
        return state.keys[layer, :, : self._length].clone(), state.values[layer, :, : self._length].clone()

    @torch.inference_mode()
    def resume(self, layers: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Go on as if each layer's keys and values [kv heads, length, head size] had been computed.

        They may be repeated for each query head, as transformers' Falcon caches them.
        """
        check_cache(length, self._state.capacity)
        for index, (keys, values) in enumerate(layers):
            repeats = keys.shape[0] // self._state.num_kv_heads
            self._state.keys[index, :, :length] = keys[::repeats]
            self._state.values[index, :, :length] = values[::repeats]
        self._length = length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._loaded.device

    def attention(self, layer: int, precision: Precision = Precision.SAME) -> Attention:
        """One layer's attention sub-layer; at a low precision only after `set_draft` with such a draft."""
        sublayer = self._sublayer(SubLayerId(SubLayerKind.ATTENTION, layer).index, precision)
        assert isinstance(sublayer, Attention)
        return sublayer

    def mlp(self, layer: int, precision: Precision = Precision.SAME, experts: int | None = None) -> SubLayer:
        """One layer's MLP or mixture of experts, of which a token goes to so many, as in `attention`."""
        return self._sublayer(SubLayerId(SubLayerKind.MLP, layer).index, precision, experts)

    def embed(self, tokens: Sequence[int], positions: slice | Tensor) -> Tensor:
        """Hidden states [tokens, width] before the first sub-layer, of tokens at ``positions``."""
        if len(tokens) == 1:  # nothing to send to the device
            return self._embedding(slice(tokens[0], tokens[0] + 1), positions)
        return self._embedding(torch.tensor(tokens, device=self.device), positions)

    def head(
        self,
        hidden: Tensor,
        vocabulary: int | None = None,
        precision: Precision = Precision.SAME,
        others: Tensor | None = None,
    ) -> Tensor:
        """Logits of hidden [tokens, width]: of the first ``vocabulary`` ids only, and then of ``others`` [ids]."""
        first = self._head_at(precision, vocabulary)
        return self._head(hidden, first if others is None else Joined(first, self._head.dense.rows(others)))

    @torch.inference_mode()
    def input_moments(self, tokens: Sequence[int]) -> dict[Dense, Moments]:
        """What the inputs of every linear layer are like along ``tokens``.

        Left out are layers whose number of inputs is no multiple of 32, and experts. What is cached is kept.
        """
        meters: dict[Dense, Meter] = {}

        def metered(dense: Dense) -> Projection:
            return meters.setdefault(dense, Meter(dense)) if dense.weight.shape[1] % 32 == 0 else dense

        sublayers = [s.with_projections(*map(metered, s.projections)) for s in self._sublayers]
        head = metered(self._head.dense)
        length = self._length
        held = self._state.copy(length) if length else None
        tokens = tokens[: self._loaded.context_length]
        self.reserve(len(tokens))
        self._length = 0
        hidden = self._run(tokens, sublayers)
        if isinstance(head, Meter):
            head.note(self._head.normalised(hidden))
        if held is not None:
            self._state.restore(held)
        self._length = length
        return {dense: meter.moments for dense, meter in meters.items() if meter.has_seen}

    def rotation(self, plan: AttentionPlan, positions: Tensor) -> Rotation:
        """What ``positions`` [tokens], all below the capacity, do to the queries and keys of an attention."""
        return self._state.rotation_at(plan, positions)

    def _run(self, tokens: Sequence[int], sublayers: Sequence[SubLayer]) -> Tensor:
        """Hidden states [tokens, width] after ``sublayers``, at the positions that follow the cache."""
        start, end = self._length, self._length + len(tokens)
        check_cache(end, self._state.capacity)
        stream = Stream(self.embed(tokens, slice(start, end)))
        for sublayer in sublayers:
            stream = sublayer(stream, start)
        self._length = end
        return stream.hidden

    def _rounded(self, capacity: int) -> int:
        """How many positions to allocate where ``capacity`` are asked for."""
        return -(-capacity // 256) * 256

    def _new_copies(self) -> DraftCopies:
        """An empty store of low-precision copies in the form that this runner's kernels read."""
        return DraftCopies(self._linear_layers)

    def _linear_layers(self, index: int) -> tuple[Dense, ...]:
        """The linear layers of sub-layer ``index``; of the head past the last."""
        return (self._head.dense,) if index == len(self._sublayers) else self._sublayers[index].projections

    def _copies_of(self, draft: Draft) -> list[Key]:
        """The low-precision copies that ``draft`` computes with: none for what it skips."""
        keys = [(sublayer.index, precision) for sublayer, precision in draft.kept()]
        keys.append((len(self._sublayers), draft.precision.head))
        return [(index, precision) for index, precision in keys if precision is not Precision.SAME]

    def _sublayer(self, index: int, precision: Precision, experts: int | None = None) -> SubLayer:
        sublayer = self._sublayers[index]
        if experts is not None and isinstance(sublayer, Experts):
            sublayer = sublayer.with_chosen(experts)
        if precision is Precision.SAME:
            return sublayer
        return sublayer.with_projections(*self._copies.get((index, precision)))

    def _head_at(self, precision: Precision, vocabulary: int | None) -> Projection:
        if precision is Precision.SAME:
            return self._head.dense.narrow(vocabulary)
        return self._copies.get((len(self._sublayers), precision))[0].narrow(vocabulary)

    def _hold(self, others: Dense) -> None:
        """Have the draft's head compute ``others`` beside its share: its rows of the other ids that are known."""
        self._draft_head = Joined(self._draft_share, others)

    def _forget(self, dropped: set[Key]) -> None:
        """Called with the copies that are no longer held."""


def _make(bound: BoundModel, state: CacheState, sublayer: SubLayerId) -> SubLayer:
    """One sub-layer of a decoder as its plan says; attentions share the cache."""
    plan, layer = bound.plan.sublayer(sublayer), sublayer.layer
    if isinstance(plan, AttentionPlan):
        return Attention(plan, bound, layer, state)
    return Mlp(plan, bound, layer) if isinstance(plan, MlpPlan) else Experts(plan, bound, layer)

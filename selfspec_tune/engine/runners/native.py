"""The native runner: prefill by PyTorch, everything after it by our own CPU kernels.

Verification and single steps give the same bits, so greedy output equals plain decoding's
in bfloat16 too. Draft copies of sub-layers at int8 or int4 are made when a draft first
asks for them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import exp, inf, nan
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Certainty, Draft, Precision
from selfspec_tune.draft.rounds import MOST_MARGIN
from selfspec_tune.engine.kernels import weights
from selfspec_tune.engine.kernels.binding import (
    LOWEST,
    MAX_EXPERTS,
    MAX_HEAD_SIZE,
    MAX_TOKENS,
    Best,
    Model,
    SubLayerStruct,
    load_library,
)
from selfspec_tune.engine.kernels.structures import Described, Stack
from selfspec_tune.engine.kernels.weights import FORMATS, NativeCopy
from selfspec_tune.engine.layers.copies import DraftCopies, Key
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings
from selfspec_tune.engine.layers.quantize import Moments, typical_text
from selfspec_tune.engine.runner import Scores, Want, check_cache, check_chosen
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.errors import NativeUnavailableError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.plans import ClaimKind, ExpertsPlan, Feature, claims, plan_of

_KERNELS_HAVE = frozenset(
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
        *(Feature.ROUTER_IN_FLOAT32, Feature.ROUNDED_WEIGHTS, Feature.ROUTER_BIAS, Feature.CHOSEN_FIRST),
    }
)
_TOKEN_BYTES, _BEST_BYTES = ctypes.sizeof(ctypes.c_int64), ctypes.sizeof(Best)


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
    model, plan = loaded.model, plan_of(loaded.model.config.to_dict())
    head_size = max(layer.attention.head_size for layer in plan.layers)
    if head_size > MAX_HEAD_SIZE:
        return f"the native kernels have heads of up to {MAX_HEAD_SIZE}, not {head_size}"
    experts = max((layer.mlp.count for layer in plan.layers if isinstance(layer.mlp, ExpertsPlan)), default=0)
    if experts > MAX_EXPERTS:
        return f"the native kernels choose from up to {MAX_EXPERTS} experts, not {experts}"
    turned = {f"{claim.path}.weight" for claim in claims(plan) if claim.kind is ClaimKind.TRANSPOSED}
    for name, weight in model.named_parameters():
        is_copied = weight.dim() < 2 or name in turned  # norms and biases to float32; what is transposed is turned
        if weight.dtype not in FORMATS:
            return f"the native kernels read bfloat16 and float32, and {name} is {_name(weight.dtype)}"
        if not is_copied and not weight.is_contiguous():
            return f"the native kernels read contiguous weights, and {name} is strided"
    for path in (plan.embedding.path, plan.embedding.positions):
        embedded = None if path is None else model.get_parameter(f"{path}.weight").dtype
        if embedded not in (None, loaded.dtype):
            return f"its {path} is {_name(embedded)}, and the model {_name(loaded.dtype)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _certainty(best: Best) -> Certainty:
    margin = min(best.logit - best.second, MOST_MARGIN)
    return Certainty(exp(best.logit - best.log_sum), margin, max(best.entropy, 0.0))


class NativeRunner(FastRunner):
    """A `FastRunner` whose passes after the prefill run in native calls, which write no logits where none are wanted.

    Logits are float32 with values rounded to the model's type. Where ``notice`` is set it is told
    of what takes long besides the steps.
    """

    name = "native"
    SERVES = FastRunner.SERVES & _KERNELS_HAVE  # for prompts are the fast runner's

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel) -> None:
        self._library = load_library()
        self.notice: Callable[[str], None] | None = None
        self._engine: int | None = None
        self._engine_reads: tuple[Any, ...] = ()
        self._own: list[tuple[Described, SubLayerStruct]] = []
        self._moments: dict[Dense, Moments] | None = None  # of the inputs, once a copy needs them
        # Of the copies held, and of mixtures with fewer experts.
        self._described: dict[tuple[int, Precision, int | None], tuple[Described, SubLayerStruct]] = {}
        super().__init__(loaded)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._close()

    @torch.inference_mode()
    def reserve(self, capacity: int) -> None:
        before = self._state.capacity
        super().reserve(capacity)
        if self._state.capacity != before:
            self._open()

    def release(self) -> None:
        super().release()
        self._close()

    @torch.inference_mode()
    def set_draft(self, draft: Draft) -> None:
        super().set_draft(draft)
        if not self._own:
            self._describe_model()
        kept = [self._structure(sublayer.index, precision, draft.experts) for sublayer, precision in draft.kept()]
        assert isinstance(self._draft_share, Dense | NativeCopy)
        self._drafting = self._draft_stack = Stack.of(kept, self._draft_share)

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        if last_only:  # a prompt
            return super().forward(tokens, is_draft=is_draft, want=want, last_only=True)
        stack = self._drafting if is_draft else self._full
        start, count = self._length, len(tokens)
        check_cache(start + count, self._state.capacity)
        num_embedded = self._embedding.weight.shape[0]
        if not all(0 <= token < num_embedded for token in tokens):  # the kernels would read past the end
            raise IndexError(f"the model embeds the tokens 0 to {num_embedded - 1}, and was given {list(tokens)}")
        given, best = (ctypes.c_int64 * count)(*tokens), (Best * count)()
        width = self._known.size if is_draft else self.vocabulary_size
        logits = torch.empty(count, width) if want is Want.LOGITS else None
        if logits is not None and width > stack.head.first.rows:
            logits.fill_(-inf)  # of the ids between that the draft does not know
        for first in range(0, count, MAX_TOKENS):
            self._library.engine_run(
                self._engine,
                stack.sublayers,
                len(stack.sublayers),
                ctypes.byref(stack.head),
                ctypes.byref(given, first * _TOKEN_BYTES),
                min(MAX_TOKENS, count - first),
                start + first,
                None if logits is None else logits[first].data_ptr(),
                want is Want.CERTAINTIES,
                ctypes.byref(best, first * _BEST_BYTES),
            )
        self._length = start + count
        if logits is not None:
            return Scores(logits=logits)
        chosen = [each.token for each in best]
        if not is_draft:
            largest = [each.log_sum if each.logit > LOWEST else nan for each in best]
            check_chosen(tokens, chosen, largest, self)
        certainties = [_certainty(each) for each in best] if want is Want.CERTAINTIES else []
        return Scores(chosen, certainties)

    def read_kernels(self, buffer: Tensor) -> list[tuple[str, Callable[[], int]]]:
        """The kernels' own reading of a contiguous ``buffer``: a name, and what reads it all and returns the bytes."""
        size = buffer.numel() * buffer.element_size()

        def read() -> int:
            self._library.read_all(buffer.data_ptr(), size, torch.get_num_threads())
            return size

        return [("native sum", read)]

    def precision_refusal(self, precision: Precision) -> str | None:
        if precision is Precision.SAME:
            return None
        widths = {int(dense.weight.shape[1]) for sublayer in self._sublayers for dense in sublayer.projections}
        reasons = (weights.refusal(precision, width, self._copies.settings) for width in sorted(widths))
        return next((reason for reason in reasons if reason is not None), None)

    def _new_copies(self) -> DraftCopies:
        made = DraftCopies(self._linear_layers, self._copy, weights.copy_bytes)
        made.settings = LowBitSettings(symmetric=True)
        return made

    def _copy(self, dense: Dense, precision: Precision, settings: LowBitSettings) -> NativeCopy:
        if precision is Precision.INT4 and settings.symmetric and self._moments is None:
            text = typical_text(self._loaded, self.vocabulary_size)
            if self.notice is not None:
                self.notice(
                    f"int4 copies are made: what they are fed is learnt from {len(text)} tokens of "
                    "text, which takes as long as a prompt of that length."
                )
            self._moments = self.input_moments(text)
        return NativeCopy(dense, precision, settings, (self._moments or {}).get(dense))

    def _hold(self, others: Dense) -> None:
        super()._hold(others)
        self._drafting = self._draft_stack.beside(others, self._known.others)

    def _forget(self, dropped: set[Key]) -> None:
        self._described = {key: made for key, made in self._described.items() if key[:2] not in dropped}

    def _describe_model(self) -> None:
        for module in self._sublayers:
            described = Described()
            self._own.append((described, described.sublayer(self.plan, module)))
        self._full = Stack.of(self._own, self._head.dense)

    def _structure(self, index: int, precision: Precision, experts: int | None) -> tuple[Described, SubLayerStruct]:
        module = self._sublayers[index]
        experts = experts if isinstance(module, Experts) else None
        if precision is Precision.SAME and experts is None:
            return self._own[index]
        key = index, precision, experts
        if key not in self._described:
            described, copies = Described(), () if precision is Precision.SAME else self._copies.get(key[:2])
            module = module.with_chosen(experts) if experts and isinstance(module, Experts) else module
            made = [copy for copy in copies if isinstance(copy, NativeCopy)]
            self._described[key] = described, described.sublayer(self.plan, module, made)
        return self._described[key]

    def _close(self) -> None:
        """Give the scratch memory back, and what it was made for."""
        if self._engine:
            self._library.engine_free(self._engine)
        self._engine, self._engine_reads = None, ()

    def _open(self) -> None:
        """Scratch memory for the cache's new size."""
        state, embedding, head, described = self._state, self._embedding, self._head, Described()
        hidden = int(embedding.weight.shape[1])
        widths = (int(dense.weight.shape[1]) for sublayer in self._sublayers for dense in sublayer.projections)
        mixtures = [layer.mlp for layer in self.plan.layers if isinstance(layer.mlp, ExpertsPlan)]
        model = Model(
            is_bf16=self._loaded.dtype == torch.bfloat16,
            threads=torch.get_num_threads(),
            hidden=hidden,
            heads=max(layer.attention.num_heads for layer in self.plan.layers),
            kv_heads=state.num_kv_heads,
            head_size=state.head_size,
            widest=max(hidden, *widths),
            vocabulary=self.vocabulary_size,
            capacity=state.capacity,
            experts=max((mixture.count for mixture in mixtures), default=0),
            chosen=self.plan.most_chosen,
            expert_width=max((mixture.width for mixture in mixtures), default=0),
            shared_width=max((mixture.shared.width for mixture in mixtures if mixture.shared), default=0),
            embedding=embedding.weight.data_ptr(),
            positions=None if embedding.positions is None else embedding.positions.data_ptr(),
            embedding_scale=embedding.scale,
            logit_scale=head.plan.scale,
            logit_cap=head.plan.cap or 0.0,
            embedding_norm=described.norm(embedding.norm),
            final_norm=described.norm(head.norm),
            ropes=described.ropes(self.plan, state),
            tables=described.tables(self.plan, state),
            keys=state.keys.data_ptr(),
            values=state.values.data_ptr(),
        )
        self._close()
        self._engine = self._library.engine_new(ctypes.byref(model))
        self._engine_reads = described, embedding, state.keys, state.values
        if not self._engine:
            state.capacity = 0  # so that no pass runs, and the next reservation tries again
            raise UsageError(
                "No memory for the native kernels' scratch space. Use shorter prompts, a smaller `max_new_tokens` or "
                "`extra_memory`, or `runner` fast."
            )

"""The native runner: prefill by PyTorch, everything after it by our own CPU kernels.

Verification and single steps give the same bits, so greedy output equals plain decoding's
in bfloat16 too. Draft copies of sub-layers at int8 or int4 are made when a draft first
asks for them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.draft_copies import DraftCopies, Key
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.lowbit import LowBitSettings
from selfspec_tune.engine.native import copies
from selfspec_tune.engine.native.build import NativeUnavailableError
from selfspec_tune.engine.native.copies import NativeCopy
from selfspec_tune.engine.native.library import MAX_TOKENS, UNIT, Best, Linear, Model, SubLayer, load_library
from selfspec_tune.engine.native.weights import FORMATS, Described, pointers
from selfspec_tune.engine.projection import Dense
from selfspec_tune.engine.runner import check_cache
from selfspec_tune.models import LoadedModel


def native_unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the native runner cannot serve a model that the fast runner can; None where it does."""
    if loaded.device.type != "cpu":
        return f"the native kernels run on a CPU, not on {loaded.device}"
    if loaded.dtype not in FORMATS:
        return f"the native kernels read bfloat16 and float32, not {str(loaded.dtype).removeprefix('torch.')}"
    try:
        load_library()
    except NativeUnavailableError as error:
        return str(error)
    return None


class NativeRunner(FastRunner):
    """A `FastRunner` whose steps after the prefill run in one native call each.

    Logits are float32 with values rounded to the model's type.
    """

    name = "native"

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel) -> None:
        self._library = load_library()
        self._engine: int | None = None
        self._own: tuple[Described, list[SubLayer]] | None = None
        self._described: dict[Key, tuple[Described, SubLayer]] = {}
        super().__init__(loaded)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.engine_free(self._engine)

    @torch.inference_mode()
    def reserve(self, capacity: int) -> None:
        before = self._state.capacity
        super().reserve(capacity)
        if self._state.capacity != before:
            self._open()

    @torch.inference_mode()
    def set_draft(self, draft: Draft) -> None:
        super().set_draft(draft)
        if self._own is None:
            self._describe_model()
        flags = draft.skip_set.to_flags()
        kept = [self._structure(i, draft.precision.of(i)) for i, skip in enumerate(flags) if not skip]
        self._drafting = pointers(kept)
        head = self._draft_head
        assert isinstance(head, (Dense, NativeCopy))
        self._drafting_head = Described(), kept
        self._draft_head_structure = self._drafting_head[0].linear(head)

    @torch.inference_mode()
    def decode(self, token: int) -> Tensor:
        return self._logits([token], self._all, self._whole_head)[0]

    @torch.inference_mode()
    def draft_step(self, token: int) -> Tensor:
        return self._logits([token], self._drafting, self._draft_head_structure)[0]

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int]) -> Tensor:
        return torch.cat([self._logits(piece, self._all, self._whole_head) for piece in _pieces(tokens)])

    def decode_greedy(self, token: int) -> int:
        return int(self._pass([token], self._all, self._whole_head)[0].token)

    def draft_greedy(self, token: int, count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        probabilities: list[float] = []
        for _ in range(count):
            best = self._pass([token], self._drafting, self._draft_head_structure)[0]
            token = int(best.token)
            tokens.append(token)
            probabilities.append(exp(best.logit - best.log_sum))
        return tokens, probabilities

    def verify_greedy(self, tokens: Sequence[int]) -> list[int]:
        rows = (best for piece in _pieces(tokens) for best in self._pass(piece, self._all, self._whole_head))
        return [int(best.token) for best in rows]

    def read_kernels(self, buffer: Tensor) -> list[tuple[str, Callable[[], int]]]:
        """What these kernels' own reading of a contiguous ``buffer`` takes: a name, and what reads and returns the bytes."""
        size = buffer.numel() * buffer.element_size()

        def read() -> int:
            self._library.read_all(buffer.data_ptr(), size, torch.get_num_threads())
            return size

        return [("native sum", read)]

    def precision_refusal(self, precision: Precision) -> str | None:
        if precision is Precision.SAME:
            return None
        widths = {int(dense.weight.shape[1]) for index in (0, 1) for dense in self._sublayers[index].projections}
        reasons = [copies.refusal(precision, width, self._copies.settings) for width in sorted(widths)]
        if precision is Precision.INT4 and self._mlp_width % UNIT:
            reasons.append(f"its MLPs' {self._mlp_width} inner units are no multiple of {UNIT}")
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def _mlp_width(self) -> int:
        return int(self._sublayers[1].projections[1].weight.shape[1])

    def _new_copies(self) -> DraftCopies:
        made = DraftCopies(self._linear_layers, NativeCopy, copies.copy_bytes)
        made.settings = LowBitSettings(symmetric=True)
        return made

    def _forget(self, dropped: set[Key]) -> None:
        for key in dropped:
            self._described.pop(key, None)

    def _describe_model(self) -> None:
        described = Described()
        sublayers = [described.sublayer(i, module) for i, module in enumerate(self._sublayers)]
        self._own = described, sublayers
        self._all = pointers(sublayers)
        self._whole_head = described.linear(self._head)
        self._final_norm = described.floats(self._norm.weight)

    def _structure(self, index: int, precision: Precision) -> SubLayer:
        assert self._own is not None
        if precision is Precision.SAME:
            return self._own[1][index]
        key = index, precision
        if key not in self._described:
            described = Described()
            made = [copy for copy in self._copies.get(key) if isinstance(copy, NativeCopy)]
            self._described[key] = described, described.sublayer(index, self._sublayers[index], made)
        return self._described[key][1]

    def _logits(self, tokens: Sequence[int], sublayers: Any, head: Linear) -> Tensor:
        logits = torch.empty(len(tokens), head.rows)
        self._pass(tokens, sublayers, head, logits)
        return logits

    def _pass(self, tokens: Sequence[int], sublayers: Any, head: Linear, logits: Tensor | None = None) -> Any:
        """Run ``tokens`` at the positions that follow the cache; the best token of each, and logits [tokens, rows]."""
        start, count = self._length, len(tokens)
        check_cache(start + count, self._state.capacity)
        best = (Best * count)()
        self._library.engine_run(
            self._engine,
            sublayers,
            len(sublayers),
            ctypes.byref(head),
            (ctypes.c_int64 * count)(*tokens),
            count,
            start,
            None if logits is None else logits.data_ptr(),
            best,
        )
        self._length = start + count
        return best

    def _open(self) -> None:
        """Scratch memory for the cache's new size."""
        state, config = self._state, self._loaded.model.config
        self._tables = state.cos.float().contiguous(), state.signed_sin.float().contiguous()
        hidden = int(self._embedding.shape[1])
        model = Model(
            self._loaded.dtype == torch.bfloat16,
            torch.get_num_threads(),
            hidden,
            state.num_heads,
            state.num_kv_heads,
            state.head_size,
            max(hidden, int(config.intermediate_size), state.num_heads * state.head_size),
            state.capacity,
            self._norm.epsilon,
            self.attention(0).scale,
            self._embedding.data_ptr(),
            self._final_norm,
            *(table.data_ptr() for table in self._tables),
            state.keys.data_ptr(),
            state.values.data_ptr(),
        )
        if self._engine:
            self._library.engine_free(self._engine)
        self._engine = self._library.engine_new(ctypes.byref(model))
        if not self._engine:
            raise MemoryError("no memory for the native runner's scratch space")


def _pieces(tokens: Sequence[int]) -> list[Sequence[int]]:
    return [tokens[start : start + MAX_TOKENS] for start in range(0, len(tokens), MAX_TOKENS)]

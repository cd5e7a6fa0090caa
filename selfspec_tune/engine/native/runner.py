"""The native runner: prefill by PyTorch, everything after it by our own CPU kernels.

Verification and single steps give the same bits, so greedy output equals plain decoding's
in bfloat16 too. Draft copies of sub-layers at int8 or int4 are made when a draft first
asks for them; only drafting reads them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.native.build import NativeUnavailableError
from selfspec_tune.engine.native.library import MAX_TOKENS, Linear, Model, SubLayer, load_library
from selfspec_tune.engine.native.weights import FORMATS, Weights, pointers
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
        self._weights = Weights()
        self._copies: dict[tuple[int, Precision], tuple[SubLayer, Weights]] = {}
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
    def decode(self, token: int) -> Tensor:
        return self._pass([token], self._all, self._full_head)[0]

    @torch.inference_mode()
    def draft_step(self, token: int) -> Tensor:
        return self._pass([token], self._drafting, self._draft_head)[0]

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int]) -> Tensor:
        pieces = [tokens[start : start + MAX_TOKENS] for start in range(0, len(tokens), MAX_TOKENS)]
        logits = [self._pass(piece, self._all, self._full_head) for piece in pieces]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _pass(self, tokens: Sequence[int], sublayers: Any, head: Linear) -> Tensor:
        """Run ``tokens`` at the positions that follow the cache; logits [tokens, rows of head]."""
        start, count = self._length, len(tokens)
        logits = torch.empty(count, head.rows)
        ids = (ctypes.c_int64 * count)(*tokens)
        self._library.engine_run(
            self._engine, sublayers, len(sublayers), ctypes.byref(head), ids, count, start, logits.data_ptr()
        )
        self._length = start + count
        return logits

    def _open(self) -> None:
        """Scratch memory for the cache's new size."""
        state, config = self._state, self._loaded.model.config
        self._tables = state.cos.float().contiguous(), state.signed_sin.float().contiguous()
        attention = self.attention(0)
        model = Model(
            self._loaded.dtype == torch.bfloat16,
            torch.get_num_threads(),
            int(config.hidden_size),
            state.num_heads,
            state.num_kv_heads,
            state.head_size,
            max(int(config.hidden_size), int(config.intermediate_size), state.num_heads * state.head_size),
            state.capacity,
            self._norm.epsilon,
            attention.scale,
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

    def set_draft(self, draft: Draft) -> None:
        super().set_draft(draft)
        if not hasattr(self, "_all"):
            self._originals = [self._weights.sublayer(i, m) for i, m in enumerate(self._sublayers)]
            self._all = pointers(self._originals)
            self._full_head = self._weights.linear(self._head, self._head_bias)
            self._final_norm = self._weights.floats(self._norm.weight)
        flags = draft.skip_set.to_flags()
        kept = [i for i, skip in enumerate(flags) if not skip]
        prec = getattr(self, "test_precision", None) or (lambda i: Precision.SAME)
        self._drafting_structs = [self._sub(i, prec(i)) for i in kept]
        self._drafting = pointers(self._drafting_structs)
        self._draft_head = self._head_at(prec(-1))
        if draft.vocabulary:
            h = self._draft_head
            self._draft_head = Linear(h.format, h.has_minimum, draft.vocabulary, h.cols, h.data, h.scales, h.bias)

    def _sub(self, i, p):
        if p is Precision.SAME:
            return self._originals[i]
        if (i, p) not in self._copies:
            w = Weights()
            self._copies[i, p] = (w.sublayer(i, self._sublayers[i], p), w)
        return self._copies[i, p][0]

    def _head_at(self, p):
        if p is Precision.SAME:
            return self._full_head
        if (-1, p) not in self._copies:
            w = Weights()
            self._copies[-1, p] = (w.linear(self._head, self._head_bias, p), w)
        return self._copies[-1, p][0]

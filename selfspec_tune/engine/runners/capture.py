"""How a pass is captured and replayed, as a CUDA graph or dry, and the static inputs that it reads.

One int64 tensor on the device, and on the host what is known to be in it, so that nothing
is sent that is there already: after a draft the verification finds its tokens in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from selfspec_tune.engine.known_ids import MOST_OTHERS, KnownIds
from selfspec_tune.engine.layers.linear import Dense

Pass = Callable[[], None]
_RING = 8
_HEADER = 2

"""A forward pass that reads and writes tensors at fixed addresses only, and nothing on the host."""


class GraphBackend(Protocol):
    """Runs a pass for the first time, and captures it for the times after that."""

    def run(self, forward: Pass) -> None:
        """Run the pass itself: it warms up what a capture may not do (libraries, allocations, compilation)."""

    def capture(self, forward: Pass) -> Pass:
        """A function that does what ``forward`` does; ``forward`` itself has no effect here."""


class DryGraphs:
    """No graphs: replaying is calling. Buffers, positions, buckets and masks are the same as on a GPU."""

    def run(self, forward: Pass) -> None:
        forward()

    def capture(self, forward: Pass) -> Pass:
        return forward


class CudaGraphs:
    """CUDA graphs that share one memory pool: they are replayed one after the other, never at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def run(self, forward: Pass) -> None:
        # On the stream of the capture, so that what libraries allocate per stream is there already.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            forward()
        current.wait_stream(self._stream)

    def capture(self, forward: Pass) -> Pass:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            forward()
        return _Replay(graph, forward)


class _Replay:
    """A graph together with the pass that it was captured from, which owns the tensors at its addresses."""

    def __init__(self, graph: torch.cuda.CUDAGraph, forward: Pass) -> None:
        self._graph = graph
        self._forward = forward

    def __call__(self) -> None:
        self._graph.replay()


class DeviceInputs:
    """``start`` [1]: positions in the cache before ``tokens``. ``slot`` [1]: which of ``tokens`` [size] a
    draft step takes; it writes the token it chooses into the next slot and moves on.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device_values = torch.zeros(_HEADER + size, dtype=torch.int64, device=device)
        self.start, self.slot = self._device_values[:1], self._device_values[1:2]
        self.tokens = self._device_values[_HEADER:]
        self._ring = _Ring(_HEADER + size, device)
        self._start, self._slot = 0, 0
        self._known: list[int] = []  # the tokens that are there for certain, from slot 0 on
        self._is_drafting = False

    @property
    def next_slot(self) -> int:
        """The slot that the next draft step takes its token from."""
        return self._slot

    def expect_pass(self, start: int, tokens: Sequence[int]) -> None:
        """Have ``tokens`` in the first slots, the first of them at position ``start``."""
        self._is_drafting = False
        if self._start != start or self._known[: len(tokens)] != list(tokens):
            self._send(start, 0, list(tokens))

    def expect_draft(self, position: int, token: int, count: int = 1) -> None:
        """Have the next ``count`` draft steps begin with ``token`` at ``position``, behind the last if they can."""
        follows = self._is_drafting and self._start + self._slot == position and self._slot + count < self.size
        if not follows:
            self._send(position, 0, [token])
        elif self._known[self._slot : self._slot + 1] != [token]:
            self._send(self._start, self._slot, [*self._known[: self._slot], token])
        self._is_drafting = True

    def drafted(self, tokens: Sequence[int] | None = None, count: int = 1) -> None:
        """Note that ``count`` draft steps were made and, if it was read, which tokens they chose."""
        del self._known[self._slot + 1 :]
        self._known.extend(tokens or ())
        self._slot += count

    def _send(self, start: int, slot: int, tokens: list[int]) -> None:
        self._start, self._slot, self._known = start, slot, tokens
        self._ring.send([start, slot, *tokens], self._device_values)


class HeadSlots:
    """What `KnownIds` has past its first ids, at fixed addresses: a captured pass computes every slot, filled or not.

    ``dense``: rows of a head, one a slot. ``are_empty`` [slots]: which are not filled. ``ids`` [first and slots]: the
    token of each output of a head's first rows and then of ``dense``.
    """

    def __init__(self, head: Dense) -> None:
        weight, bias = head.weight, head.bias
        self.dense = Dense(
            weight.new_zeros(MOST_OTHERS, weight.shape[1]), None if bias is None else bias.new_zeros(MOST_OTHERS)
        )
        self.are_empty = torch.ones(MOST_OTHERS, dtype=torch.bool, device=weight.device)
        self.ids = torch.arange(len(weight) + MOST_OTHERS, device=weight.device)

    def hold(self, known: KnownIds, others: Dense | None = None) -> None:
        """Put in the ids that are known now, and ``others``, their rows, where there are any."""
        count = len(known.others)
        self.are_empty.copy_(torch.arange(MOST_OTHERS, device=self.ids.device) >= count)
        self.ids[: known.first] = torch.arange(known.first, device=self.ids.device)
        self.ids[known.first : known.first + count] = known.others
        if others is not None:
            self.dense.weight[:count] = others.weight
            if self.dense.bias is not None and others.bias is not None:
                self.dense.bias[:count] = others.bias


class _Ring:
    """Page-locked buffers in turn, so that a copy to the GPU need not be waited for."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._buffers = [torch.zeros(size, dtype=torch.int64, pin_memory=self._on_gpu) for _ in range(_RING)]
        self._sent = [torch.cuda.Event() for _ in range(_RING)] if self._on_gpu else []
        self._turn = 0

    def send(self, values: Sequence[int], target: Tensor) -> None:
        """Copy ``values`` to the beginning of ``target``."""
        turn = self._turn
        self._turn = (turn + 1) % _RING
        if self._on_gpu:
            self._sent[turn].synchronize()  # its last copy is long done: this waits only when eight are on their way
        part = self._buffers[turn][: len(values)]
        part.copy_(torch.tensor(values))
        target[: len(values)].copy_(part, non_blocking=True)
        if self._on_gpu:
            self._sent[turn].record(torch.cuda.current_stream(self._device))

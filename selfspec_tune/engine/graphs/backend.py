"""How a pass is captured and replayed: as a CUDA graph, or, dry, by calling it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Pass = Callable[[], None]
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

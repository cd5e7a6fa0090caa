"""Decoding by captured CUDA graphs over a static cache; on a CPU the same code replays eagerly."""

from selfspec_tune.engine.graphs.backend import CudaGraphs, DryGraphs, GraphBackend
from selfspec_tune.engine.graphs.runner import GraphedRunner

__all__ = ["CudaGraphs", "DryGraphs", "GraphBackend", "GraphedRunner"]

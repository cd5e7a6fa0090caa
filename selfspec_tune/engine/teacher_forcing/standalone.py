"""Scoring a draft that runs as a model of its own, as an exported one does.

It computes the whole text itself, prompt included: every key and value that it attends to
is its own. It accepts less than a draft that shares the full model's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.llama_layers import Attention
from selfspec_tune.engine.reference import skipped
from selfspec_tune.engine.runner import check_same_precision
from selfspec_tune.engine.teacher_forcing.layerwise import LayerwiseScorer
from selfspec_tune.engine.teacher_forcing.trace import Trace, Window, to_trace
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.loaded import keep_logits


class StandaloneScorer(LayerwiseScorer):
    """The draft's own causal pass over each window's whole text, on the fast runner's sub-layers."""

    def __init__(self, runner: FastRunner, windows: Sequence[Window]) -> None:
        super().__init__(runner, windows, [range(window.end) for window in windows])

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        return attention.attend(queries, keys.transpose(0, 1), values.transpose(0, 1), 0)


class StandaloneReferenceScorer:
    """The same through the model's own forward, for any architecture."""

    approximation = ""

    def __init__(self, loaded: LoadedModel, windows: Sequence[Window]) -> None:
        self._loaded = loaded
        self.windows = windows

    @torch.inference_mode()
    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows; see `DraftScorer`."""
        check_same_precision(draft, "reference")
        logits = []
        with skipped(self._loaded, draft.skip_set):
            for window in self.windows:
                input_ids = torch.tensor([window.tokens[: window.end]], device=self._loaded.device)
                keep = window.end - window.start
                model = self._loaded.model
                output = model(input_ids=input_ids, use_cache=False, **keep_logits(model, keep))
                logits.append(output.logits[0, -keep:, : draft.vocabulary])
        return to_trace(torch.cat(logits), self.windows)

"""Scoring by the model's own forward where its sub-layers cannot be run one by one.

The text is cut into blocks as long as a draft. Before a block the keys and values are the
full model's, within it the draft's own: each block is one draft whose tokens are all true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runner import check_same_precision
from selfspec_tune.engine.runners.reference import drafting
from selfspec_tune.engine.teacher_forcing.trace import Trace, to_trace
from selfspec_tune.engine.teacher_forcing.window import Window, WindowIds
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.loaded import keep_logits

BLOCK = 4


class BlockScorer:
    """Block-wise drafts through the model's own forward, for any architecture."""

    approximation = (
        f"drafts are scored in blocks of {BLOCK} tokens: within one they attend to keys and values of their own"
    )

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel, windows: Sequence[Window]) -> None:
        self._loaded = loaded
        self.windows = windows
        self._prefixes = [_full_model_kv(loaded, window) for window in windows]

    @torch.inference_mode()
    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows; see `DraftScorer`."""
        check_same_precision(draft, "reference")
        ids, logits = _ids(self.windows, draft, self._loaded), list[Tensor]()
        with drafting(self._loaded, draft):
            for window, prefix in zip(self.windows, self._prefixes, strict=True):
                for start in range(window.start, window.end, BLOCK):
                    block = window.tokens[start : min(start + BLOCK, window.end)]
                    logits.append(ids.among(_forward(self._loaded, block, _cut(prefix, start), start)))
        return to_trace(torch.cat(logits), self.windows, ids)


def _full_model_kv(loaded: LoadedModel, window: Window) -> list[tuple[Tensor, Tensor]]:
    """Per layer, keys and values [1, kv heads, end, size] of the full model."""
    cache = DynamicCache()  # without the model's config it keeps every position, sliding windows included
    _forward(loaded, window.tokens[: window.end], cache, 0)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _cut(prefix: Sequence[tuple[Tensor, Tensor]], length: int) -> DynamicCache:
    cache = DynamicCache()
    if length:
        for index, (keys, values) in enumerate(prefix):
            cache.update(keys[:, :, :length], values[:, :, :length], index)
    return cache


def _forward(loaded: LoadedModel, tokens: Sequence[int], cache: DynamicCache, start: int) -> Tensor:
    """Logits [tokens, vocabulary] of ``tokens`` after the ``start`` positions in ``cache``, to which they are added."""
    input_ids = torch.tensor([list(tokens)], device=loaded.device)
    how: dict[str, Any] = {loaded.cache_argument: cache}
    if loaded.takes_positions:
        how["position_ids"] = torch.arange(start, start + len(tokens), device=loaded.device)[None]
    output = loaded.model(input_ids=input_ids, use_cache=True, **how)
    logits: Tensor = output.logits[0]
    return logits


def _ids(windows: Sequence[Window], draft: Draft, loaded: LoadedModel) -> WindowIds:
    size = int(loaded.model.get_output_embeddings().weight.shape[0])
    return WindowIds(windows, draft, size, loaded.device)


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
        ids, logits = _ids(self.windows, draft, self._loaded), list[Tensor]()
        with drafting(self._loaded, draft):
            for window in self.windows:
                input_ids = torch.tensor([window.tokens[: window.end]], device=self._loaded.device)
                keep = window.end - window.start
                model = self._loaded.model
                output = model(input_ids=input_ids, use_cache=False, **keep_logits(model, keep))
                logits.append(ids.among(output.logits[0, -keep:]))
        return to_trace(torch.cat(logits), self.windows, ids)

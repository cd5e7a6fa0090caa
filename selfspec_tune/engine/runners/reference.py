"""The reference runner: any Hugging Face decoder-only model through its own forward.

Slow and obviously right; the oracle of the tests, and the fall-back for architectures
that the fast runner does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.known_ids import KnownIds
from selfspec_tune.engine.runner import Scores, Want, check_experts, check_room, check_same_precision, scored
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.loaded import keep_logits


class ReferenceRunner:
    """Skips a sub-layer by replacing its output with zeros, so that only the residual passes."""

    name = "reference"

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._device = loaded.device
        self._cache_argument = loaded.cache_argument
        self._takes_positions = loaded.takes_positions
        self._cache = DynamicCache()
        self._length = 0
        self.num_layers = loaded.num_layers
        self.vocabulary_size = int(loaded.model.get_output_embeddings().weight.shape[0])
        self.set_draft(Draft(SkipSet.empty(loaded.num_layers)))

    @property
    def about(self) -> str:
        return self._loaded.name_and_dtype

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._loaded.context_length

    def reserve(self, capacity: int) -> None:
        """The cache grows by itself; only the model's context bounds it."""
        check_room(capacity, self.capacity)

    def set_draft(self, draft: Draft) -> None:
        check_same_precision(draft, self.name)
        check_experts(draft, self._loaded)
        self._draft = draft
        self._known = KnownIds(draft, self.vocabulary_size, self._device)

    def know(self, tokens: Iterable[int]) -> None:
        self._known.add(tokens)

    @property
    def draft_ids(self) -> Tensor | None:
        return self._known.ids

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        with drafting(self._loaded, self._draft) if is_draft else nullcontext():
            logits = self._forward(tokens, keep=1 if last_only else len(tokens))
        return scored(self._known.among(logits) if is_draft else logits, want, self, tokens, is_draft=is_draft)

    def rewind(self, length: int) -> None:
        if length < 1:
            # A cache without the model's config keeps every position, sliding windows
            # included: those are then enforced by the mask, and any position can be taken back.
            self._cache, self._length = DynamicCache(), 0
        elif length < self._length:
            self._cache.crop(length - self._length)
            self._length = length

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """One layer's cached keys and values, [kv heads, length, head size] each, keys rotated."""
        cached: Any = self._cache.layers[layer]
        return cached.keys[0], cached.values[0]

    def resume(self, layers: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Go on as if each layer's keys and values [kv heads, length, head size] had been computed."""
        self._cache, self._length = DynamicCache(), length
        for index, (keys, values) in enumerate(layers):
            self._cache.update(keys[None], values[None], index)

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Logits [keep, vocabulary] of the last ``keep`` positions."""
        input_ids = torch.tensor([list(tokens)], device=self._device)
        where: dict[str, Tensor] = {}
        if self._takes_positions:
            where["position_ids"] = torch.arange(self._length, self._length + len(tokens), device=self._device)[None]
        output = self._model(
            input_ids=input_ids,
            use_cache=True,
            **where,
            **keep_logits(self._model, keep),
            **{self._cache_argument: self._cache},
        )
        self._length += len(tokens)
        logits: Tensor = output.logits[0, -keep:]
        return logits


@contextmanager
def drafting(loaded: LoadedModel, draft: Draft) -> Iterator[None]:
    """Within it the model's own forward is the draft's, at the model's own precision."""
    with skipped(loaded, draft.skip_set), _fewer_experts(loaded, draft.experts):
        yield


@contextmanager
def _fewer_experts(loaded: LoadedModel, experts: int | None) -> Iterator[None]:
    """Within it routers choose at most so many experts; None: as many as they do."""
    routers = [] if experts is None else [module for module in loaded.decoder.modules() if _routes(module)]
    before: list[int] = [router.top_k for router in routers]
    try:
        for router in routers:
            router.top_k = min(router.top_k, experts)
        yield
    finally:
        for router, top_k in zip(routers, before, strict=True):
            router.top_k = top_k


def _routes(module: Any) -> bool:
    """Whether it is a router of transformers: all call the number of experts that a token goes to so."""
    return isinstance(getattr(module, "top_k", None), int)


@contextmanager
def skipped(loaded: LoadedModel, skip_set: SkipSet) -> Iterator[None]:
    """Within it the model's own forward leaves out the sub-layers of ``skip_set``.

    A skipped attention still runs, so that every layer's cache has the same length; its
    output is thrown away. What it wrote is taken back with the draft.
    """
    found = zip(loaded.sublayers.silence, skip_set.to_flags(), strict=True)
    skipped_modules = [module for modules, is_skipped in found if is_skipped for module in modules]
    handles = [module.register_forward_hook(_zero_output) for module in skipped_modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)

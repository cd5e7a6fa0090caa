"""The fast runner by captured graphs: one launch per pass instead of a thousand.

A captured pass has fixed addresses and shapes, so the length lives in a tensor on the
device: keys and values are written by `index_copy_` at positions computed there, and
attention reads a whole *bucket* of the cache (256, 512, 1024, … positions) under a mask made
from those positions. Graphs are captured for the full model by (tokens, bucket) and for a
draft by its bucket. Skip sets change which kernels a graph holds, never the kernels: nothing
is compiled for a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.known_ids import MOST_OTHERS
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.cache import MAX_MASKED_TOKENS
from selfspec_tune.engine.layers.copies import Key
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.linear import Dense, Joined, Projection
from selfspec_tune.engine.layers.sublayer import Stream, SubLayer
from selfspec_tune.engine.runner import Scores, Want, as_scores, check_cache, most_probable, scored
from selfspec_tune.engine.runners.capture import CudaGraphs, DeviceInputs, DryGraphs, GraphBackend, HeadSlots, Pass
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.models import LoadedModel

_SMALLEST_BUCKET = 256
_MAX_DRAFTS = 8  # drafts whose graphs are kept; a search goes through hundreds

_FULL = "full"
# What: _FULL or a draft's key; how many tokens; bucket; whether it is a draft step on the device's own last token.
_GraphKey = tuple[Any, int, int, bool]


class GraphedRunner(FastRunner):
    """`FastRunner` whose decode, draft step and verification are replayed; prefill stays eager.

    ``backend`` is CUDA graphs on a GPU, else the dry one that calls each pass again.
    """

    name = "graphs"

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel, backend: GraphBackend | None = None) -> None:
        on_gpu = loaded.device.type == "cuda"
        self._slots: HeadSlots | None = None  # of the ids past a draft's share of the vocabulary, once one has a share
        self._backend: GraphBackend = backend or (CudaGraphs(loaded.device) if on_gpu else DryGraphs())
        self._graphs: dict[_GraphKey, Pass] = {}
        self._drafts: dict[Any, frozenset[Key]] = {}  # copies of each draft that may have graphs, last used last
        super().__init__(loaded)
        device = loaded.device
        self._inputs = DeviceInputs(MAX_MASKED_TOKENS, device)
        self._offsets = torch.arange(MAX_MASKED_TOKENS, device=device)
        width = self.vocabulary_size + MOST_OTHERS
        self._logits = torch.empty(MAX_MASKED_TOKENS, width, dtype=loaded.dtype, device=device)
        columns = most_probable(self._logits[:1].zero_(), Want.CERTAINTIES).shape[-1]
        self._chosen = torch.zeros(MAX_MASKED_TOKENS, columns, dtype=torch.float64, device=device)

    @property
    def num_graphs(self) -> int:
        """Captured graphs that are held."""
        return len(self._graphs)

    def buckets(self, capacity: int) -> list[int]:
        """The lengths that attention may read, up to the first that holds ``capacity`` positions."""
        lengths = [min(_SMALLEST_BUCKET, self.capacity)]
        while lengths[-1] < min(capacity, self.capacity):
            lengths.append(min(2 * lengths[-1], self.capacity))
        return lengths

    def reserve(self, capacity: int) -> None:
        """Also captures what decoding with the current draft will replay, so that no timed run captures."""
        before = self.capacity
        super().reserve(capacity)
        if self.capacity != before:
            self._graphs.clear()
        self._capture_ahead(capacity)

    def release(self) -> None:
        super().release()
        self._graphs.clear()

    def set_draft(self, draft: Draft) -> None:
        super().set_draft(draft)
        self._max_draft_tokens = min(_most_drafted(draft), MAX_MASKED_TOKENS - 1)
        self._most_tried = max((source.draft_tokens for source in draft.sources), default=0)
        if self._known.first < self.vocabulary_size:
            self._slots = self._slots or HeadSlots(self._head.dense)
            self._slots.hold(self._known)
            self._draft_head = Joined(self._draft_share, self._slots.dense)
        self._draft_key = (draft.skip_set, draft.precision, draft.vocabulary, draft.experts)
        self._drafts.pop(self._draft_key, None)
        self._drafts[self._draft_key] = frozenset(self._copies_of(draft))
        if len(self._drafts) > _MAX_DRAFTS:
            self._forget_drafts([next(iter(self._drafts))])

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        if last_only or len(tokens) > MAX_MASKED_TOKENS:
            scores = super().forward(tokens, is_draft=is_draft, want=want, last_only=last_only)
            if last_only:  # a prompt: attention reads whole buckets, and no mask hides what was no number
                self._state.clear(self._length)
            return scores
        if is_draft and len(tokens) == 1:  # which may be on the device already
            return self._steps(tokens[0], 1, want)
        logits = self._pass(tokens, self._draft_key if is_draft else _FULL)
        logits = self._known.spread(logits) if is_draft else logits[:, : self.vocabulary_size]
        return scored(logits.clone() if want is Want.LOGITS else logits, want, self, tokens, is_draft=is_draft)

    @torch.inference_mode()
    def rewind(self, length: int) -> None:
        if length < self._length:  # for the same reason
            self._state.clear(length, self._length)
        super().rewind(length)

    @torch.inference_mode()
    def draft_ahead(self, token: int, count: int) -> Scores:
        """All steps in a row; waits for the device once, at the end."""
        drafted = Scores()
        while (left := count - len(drafted.tokens)) > 0:
            drafted.extend(self._steps(token, min(left, MAX_MASKED_TOKENS - 1), Want.CERTAINTIES))  # one to a slot
            token = drafted.tokens[-1]
        return drafted

    def _steps(self, token: int, count: int, want: Want) -> Scores:
        """``count`` draft steps, read off the device once; the logits are of the last."""
        self._inputs.expect_draft(self._length, token, count)
        first = self._inputs.next_slot
        for _ in range(count):
            self._step()
        if want is Want.LOGITS:
            self._inputs.drafted(count=count)
            return Scores(logits=self._known.spread(self._logits[:1]).clone())
        scores = as_scores(self._chosen[first : first + count].tolist(), want)
        self._inputs.drafted(scores.tokens, count)
        return scores

    def _pass(self, tokens: Sequence[int], what: Any = _FULL) -> Tensor:
        """Logits [tokens, more than vocabulary] of the full model or of a draft, which the next pass overwrites."""
        end = self._length + len(tokens)
        check_cache(end, self.capacity)
        self._inputs.expect_pass(self._length, tokens)
        self._replay((what, len(tokens), self._bucket(end), False))
        self._length = end
        return self._logits[: len(tokens)]

    def _step(self) -> None:
        """One draft step from the slot that is next on the device."""
        check_cache(self._length + 1, self.capacity)
        self._replay((self._draft_key, 1, self._bucket(self._length + 1), True))
        self._length += 1

    def _replay(self, key: _GraphKey) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            graph()
            return
        forward = self._make_pass(key)
        self._backend.run(forward)
        self._graphs[key] = self._backend.capture(forward)

    @torch.inference_mode()
    def _capture_ahead(self, capacity: int) -> None:
        """Capture decode, draft step and each verification at every bucket; the cache stays as it is."""
        for bucket in self.buckets(capacity):
            wanted: list[_GraphKey] = [(_FULL, count, bucket, False) for count in range(1, self._max_draft_tokens + 2)]
            wanted.append((self._draft_key, 1, bucket, True))
            wanted += [(self._draft_key, count, bucket, False) for count in range(2, self._most_tried + 2)]
            missing = [key for key in wanted if key not in self._graphs and key[1] <= bucket]
            if missing:
                self._capture_at_end(bucket, missing)

    def _capture_at_end(self, bucket: int, keys: Sequence[_GraphKey]) -> None:
        """Capture ``keys`` at the last positions of ``bucket``, which are put back afterwards."""
        overwritten = slice(max(0, bucket - MAX_MASKED_TOKENS), bucket)
        caches = (self._state.keys, self._state.values)
        before = [cache[:, :, overwritten].clone() for cache in caches]
        for key in keys:
            _, count, _, is_step = key
            if is_step:
                self._inputs.expect_draft(bucket - count, 0)
                self._replay(key)
                self._inputs.drafted()
            else:
                self._inputs.expect_pass(bucket - count, [0] * count)
                self._replay(key)
        for cache, kept in zip(caches, before, strict=True):
            cache[:, :, overwritten] = kept

    def _make_pass(self, key: _GraphKey) -> Pass:
        what, count, bucket, is_step = key
        if is_step:
            return self._step_of_draft(bucket)
        if what is _FULL:
            return self._pass_over(count, bucket, self._sublayers, self._head.dense)
        return self._pass_over(count, bucket, self._draft_sublayers, self._draft_head)

    def _pass_over(self, count: int, bucket: int, sublayers: Sequence[SubLayer], head: Projection) -> Pass:
        """A pass over given tokens. What it runs through is bound now: by a later call the draft may be another."""
        inputs = self._inputs

        def forward() -> None:
            positions = inputs.start + self._offsets[:count]
            hidden = self._through(sublayers, inputs.tokens[:count], positions, bucket)
            logits = self._head(hidden, head)
            self._logits[:count, : logits.shape[-1]].copy_(logits)

        return forward

    def _step_of_draft(self, bucket: int) -> Pass:
        # Bound now: the draft may have changed by the time that a dry pass is called again.
        sublayers, head, first = self._draft_sublayers, self._draft_head, self._known.first
        inputs, slots = self._inputs, self._slots if first < self.vocabulary_size else None
        logits = self._logits[:1, : first + (0 if slots is None else MOST_OTHERS)]

        def forward() -> None:
            tokens = inputs.tokens.index_select(0, inputs.slot)
            hidden = self._through(sublayers, tokens, inputs.start + inputs.slot, bucket)
            logits.copy_(self._head(hidden, head))
            if slots is not None:
                logits[:, first:].masked_fill_(slots.are_empty, -inf)
            found = most_probable(logits, Want.CERTAINTIES)
            token = found[:, 0].to(inputs.tokens.dtype)
            if slots is not None:
                token = slots.ids.index_select(0, token)
                found[:, 0] = token
            self._chosen.index_copy_(0, inputs.slot, found)
            inputs.slot.add_(1)
            inputs.tokens.index_copy_(0, inputs.slot, token)

        return forward

    def _through(self, sublayers: Sequence[SubLayer], tokens: Tensor, positions: Tensor, bucket: int) -> Tensor:
        """Hidden states [tokens, width] of ``tokens`` at ``positions`` [tokens] after ``sublayers``."""
        place = self._state.place(positions, bucket)
        stream = Stream(self._embedding(tokens, positions))
        for sublayer in sublayers:
            stream = sublayer.at(stream, place) if isinstance(sublayer, Attention | Experts) else sublayer(stream, 0)
        return stream.hidden

    def _hold(self, others: Dense) -> None:
        assert self._slots is not None
        self._slots.hold(self._known, others)

    def _bucket(self, end: int) -> int:
        """The smallest bucket with ``end`` positions."""
        return self.buckets(end)[-1]

    def _rounded(self, capacity: int) -> int:
        return max(_SMALLEST_BUCKET, 1 << (capacity - 1).bit_length())

    def _forget(self, dropped: set[Key]) -> None:
        self._forget_drafts([draft for draft, copies in self._drafts.items() if copies & dropped])

    def _forget_drafts(self, drafts: Sequence[Any]) -> None:
        for draft in drafts:
            del self._drafts[draft]
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] not in drafts}


def _most_drafted(draft: Draft) -> int:
    """The longest draft of the model's or of a source's."""
    return max([draft.policy.max_draft_tokens, *(source.max_tokens for source in draft.sources)])

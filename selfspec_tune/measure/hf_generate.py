"""``model.generate`` of transformers as a way to decode one item, assisted or not."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from selfspec_tune.draft import Round
from selfspec_tune.engine import Limits, RawGeneration
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.loading_output import quietly


@torch.inference_mode()
def hf_generate(workload: Workload, item: WorkItem, loaded: LoadedModel | None = None, /, **how: Any) -> RawGeneration:
    """Decode ``item`` by ``model.generate(**how)`` with the limits and the sampling of our own arms.

    ``loaded``: whose model; by default the workload's.

    Assisted decoding drafts before its first full pass, which then gives several tokens at
    once: the time until they are there stands as prefill, their number as ``first_tokens``,
    so that what follows is time per token of decoding alone. Its drafting and verifying
    are not timed apart. A generation that runs past its end of sequence, as assisted ones of some versions do, is
    timed to it, and its rounds count as far.
    """
    model, limits = (loaded or workload.loaded).model, item.limits
    input_ids = torch.tensor([item.tokens], device=workload.loaded.device)
    clock = _TokenClock(limits.eos_token_ids)
    torch.manual_seed(workload.sampler.generator.initial_seed())
    settings = generation_config(workload, item, sorted(limits.eos_token_ids))
    with quietly(), only_settings(model, settings), counted_rounds(model) as rounds:
        workload.runner.synchronize()
        begun = perf_counter()
        output: Any = model.generate(  # type: ignore[operator]
            input_ids, attention_mask=torch.ones_like(input_ids), streamer=clock, **how
        )
        workload.runner.synchronize()
        ended = clock.ended or perf_counter()
    made = output[0, len(item.tokens) :].tolist()
    tokens = within(made, limits)
    first = clock.first or ended
    return RawGeneration(
        tokens=tokens,
        rounds=explained(rounds, len(made), len(tokens)),
        prefill_seconds=first - begun,
        decode_seconds=ended - first,
        verify_seconds=0.0 if how else ended - first,
        first_tokens=min(clock.num_first, len(tokens)),
        stop_reason="eos" if tokens and tokens[-1] in limits.eos_token_ids else "length",
    )


def within(tokens: Sequence[int], limits: Limits) -> list[int]:
    """The tokens up to the most that are allowed, or to the first end of sequence and including it."""
    kept = list(tokens[: limits.max_new_tokens])
    end = next((index for index, token in enumerate(kept) if token in limits.eos_token_ids), len(kept))
    return kept[: end + 1]


@contextmanager
def only_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Within it ``model.generate`` knows ``settings`` alone.

    Handed over as an argument, what they leave open would be filled in from the defaults
    that the checkpoint carries (least lengths, suppressed tokens, …).
    """
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def generation_config(workload: Workload, item: WorkItem, eos: list[int]) -> GenerationConfig:
    """Greedy or sampled like our own arms, whatever defaults the checkpoint carries."""
    options = workload.options
    sampling = (
        {
            "do_sample": True,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
        }
        if options.temperature > 0
        else {"do_sample": False}
    )
    return GenerationConfig(
        max_new_tokens=item.limits.max_new_tokens,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
        repetition_penalty=1.0,
        **sampling,
    )


def explained(rounds: Sequence[Round], num_tokens: int, num_kept: int) -> list[Round]:
    """The rounds of the first ``num_kept`` of ``num_tokens`` new tokens; none where they do not explain them all."""
    is_sound = all(one.num_accepted <= one.num_drafted for one in rounds)
    made = list(accumulate(one.num_tokens for one in rounds))
    if not is_sound or not made or made[-1] != num_tokens:
        return []
    if num_kept == num_tokens:
        return list(rounds)
    last = bisect_left(made, num_kept)
    before = made[last - 1] if last else 0
    cut = replace(rounds[last], num_accepted=min(rounds[last].num_accepted, num_kept - before))
    return [*rounds[:last], cut]


@contextmanager
def counted_rounds(model: Any) -> Iterator[list[Round]]:
    """Within it the rounds of assisted generation are listed.

    Every candidate generator of transformers is told how many of its tokens matched; that call
    is listened to. Where a version makes its generators elsewhere, nothing is counted.
    """
    rounds: list[Round] = []
    make = getattr(model, "_get_candidate_generator", None)
    if make is None:
        yield rounds
        return

    def make_counting(*args: Any, **kwargs: Any) -> Any:
        generator = make(*args, **kwargs)
        update = generator.update_candidate_strategy

        def counted(input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
            rounds.append(Round(scores.shape[1] - 1, int(num_matches)))  # scores [1, drafted + 1, vocabulary]
            update(input_ids, scores, num_matches)

        generator.update_candidate_strategy = counted
        return generator

    model._get_candidate_generator = make_counting
    try:
        yield rounds
    finally:
        del model._get_candidate_generator


class _TokenClock(BaseStreamer):
    """Notes when generate hands out its first new tokens, and how many: the end of its prefill; and when an end of
    sequence among them, None where there is none."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self.first: float | None = None
        self.ended: float | None = None
        self.num_first = 1
        self._eos_token_ids = eos_token_ids
        self._seen_prompt = False

    def put(self, value: Any) -> None:
        now = perf_counter()
        if self._seen_prompt and self.first is None:
            self.first = now
            self.num_first = int(value.numel())
        if self._seen_prompt and self.ended is None and not self._eos_token_ids.isdisjoint(value.flatten().tolist()):
            self.ended = now
        self._seen_prompt = True

    def end(self) -> None: ...

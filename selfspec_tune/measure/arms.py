"""The arms of a measurement: ways to decode one item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.engine import Generation, autoregressive, self_speculative
from selfspec_tune.measure.workload import WorkItem, Workload

BASELINE = "autoregressive"
NULL = "a-a"
SELF_SPECULATIVE = "self-speculative"
GENERATE = "hf-generate"
EMPTY = "empty-skip-set"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode. ``name`` is the kind of method, ``id`` tells arms of one kind apart."""

    id: str
    name: str
    decode: Callable[[WorkItem], Generation]
    draft: Draft | None = None
    description: str = ""


def autoregressive_arm(workload: Workload, arm_id: str = BASELINE) -> Arm:
    """Plain decoding by our own engine: the baseline, or its double in an A-A run."""

    def decode(item: WorkItem) -> Generation:
        return autoregressive(workload.runner, item.tokens, item.limits, workload.sampler)

    return Arm(arm_id, BASELINE if arm_id == BASELINE else NULL, decode, description="one token per full pass")


def self_speculative_arm(
    workload: Workload, draft: Draft, arm_id: str = SELF_SPECULATIVE, name: str = SELF_SPECULATIVE
) -> Arm:
    """Self-speculative decoding with ``draft``; a cost-aware policy has its step costs measured at first use."""
    needs_costs = draft.policy.kind is PolicyKind.COST_AWARE

    def decode(item: WorkItem) -> Generation:
        costs = workload.step_costs(draft) if needs_costs else None
        return self_speculative(workload.runner, item.tokens, item.limits, workload.sampler, draft, costs)

    return Arm(arm_id, name, decode, draft, description=draft.describe())


def generate_arm(workload: Workload) -> Arm:
    """``model.generate`` of transformers, with the same limits and sampling."""

    def decode(item: WorkItem) -> Generation:
        return _generate(workload, item)

    return Arm(GENERATE, GENERATE, decode, description="model.generate of transformers")


class _FirstTokenClock(BaseStreamer):
    """Notes when generate hands out its first new token: the end of its prefill."""

    def __init__(self) -> None:
        self.first: float | None = None
        self._seen_prompt = False

    def put(self, value: Any) -> None:
        if self._seen_prompt and self.first is None:
            self.first = perf_counter()
        self._seen_prompt = True

    def end(self) -> None: ...


@torch.inference_mode()
def _generate(workload: Workload, item: WorkItem) -> Generation:
    model, eos = workload.loaded.model, sorted(item.limits.eos_token_ids)
    input_ids = torch.tensor([item.tokens], device=workload.loaded.device)
    clock = _FirstTokenClock()
    torch.manual_seed(workload.sampler.generator.initial_seed())
    workload.runner.synchronize()
    begun = perf_counter()
    with only_settings(model, generation_config(workload, item, eos)):
        output: Any = model.generate(  # type: ignore[operator]
            input_ids, attention_mask=torch.ones_like(input_ids), streamer=clock
        )
    workload.runner.synchronize()
    ended = perf_counter()
    tokens = output[0, len(item.tokens) :].tolist()
    first = clock.first or ended
    return Generation(
        tokens=tokens,
        prefill_seconds=first - begun,
        decode_seconds=ended - first,
        verify_seconds=ended - first,
        stop_reason="eos" if tokens and tokens[-1] in item.limits.eos_token_ids else "length",
    )


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

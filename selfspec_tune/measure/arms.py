"""The arms of a measurement: ways to decode one item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.engine import Generation, autoregressive, self_speculative
from selfspec_tune.measure.hf_generate import hf_generate
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
    by_transformers: bool = False  # the model's own forward pass computes it, not our runner


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
        return self_speculative(workload.speculating, item.tokens, item.limits, workload.sampler, draft, costs)

    return Arm(arm_id, name, decode, draft, description=draft.describe())


def generate_arm(workload: Workload) -> Arm:
    """``model.generate`` of transformers, with the same limits and sampling."""

    def decode(item: WorkItem) -> Generation:
        return hf_generate(workload, item)

    return Arm(GENERATE, GENERATE, decode, description="model.generate of transformers", by_transformers=True)

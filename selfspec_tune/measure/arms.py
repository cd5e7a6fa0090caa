"""The arms of a measurement: ways to decode one item, and those that every bench has beside its contenders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, RawGeneration, autoregressive, self_speculative
from selfspec_tune.engine.layers.quantize import typical_text
from selfspec_tune.errors import RivalError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.hf_generate import hf_generate
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt

BASELINE = "autoregressive"
NULL = "a-a"
SELF_SPECULATIVE = "self-speculative"
GENERATE = "hf-generate"
EMPTY = "empty-skip-set"
_LONGEST_REASON = 300
_TRIAL_PROMPT, _TRIAL_TOKENS, _TRIAL_ROUNDS = 64, 16, 2


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode. ``name`` is the kind of method, ``id`` tells arms of one kind apart."""

    id: str
    name: str
    decode: Callable[[WorkItem], RawGeneration]
    draft: Draft | None = None
    description: str = ""
    by_transformers: bool = False  # the model's own forward pass computes it, not our runner
    model: LoadedModel | None = None  # the copy that computes it, where it is not the workload's


def guarded(arm: Arm) -> Arm:
    """``arm`` whose failures, whatever they are, come out as `RivalError`."""

    def decode(item: WorkItem) -> RawGeneration:
        try:
            return arm.decode(item)
        except Exception as error:  # another project's code: anything may come, out of memory included
            raise RivalError(arm.id, reason_of(error)) from error

    return replace(arm, decode=decode)


def reason_of(error: Exception) -> str:
    """An error in one line."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"


def autoregressive_arm(workload: Workload, arm_id: str = BASELINE) -> Arm:
    """Plain decoding by our own engine: the baseline, or its double in an A-A run."""

    def decode(item: WorkItem) -> RawGeneration:
        return autoregressive(workload.runner, item.tokens, item.limits, workload.sampler)

    return Arm(arm_id, BASELINE if arm_id == BASELINE else NULL, decode, description="one token per full pass")


def self_speculative_arm(
    workload: Workload, draft: Draft, arm_id: str = SELF_SPECULATIVE, name: str = SELF_SPECULATIVE
) -> Arm:
    """Self-speculative decoding with ``draft``; a cost-aware policy has its step costs measured at first use."""
    needs_costs = draft.policy.kind is PolicyKind.COST_AWARE

    def decode(item: WorkItem) -> RawGeneration:
        costs = workload.step_costs(draft) if needs_costs else None
        shares_cache = workload.alone is None  # one that stands alone is judged as servers run it
        return self_speculative(
            workload.speculating, item.tokens, item.limits, workload.sampler, draft, costs, samples_drafts=shares_cache
        )

    return Arm(arm_id, name, decode, draft, description=draft.describe())


def generate_arm(workload: Workload) -> Arm:
    """``model.generate`` of transformers, with the same limits and sampling."""

    def arm(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            return hf_generate(workload, item, loaded)

        return Arm(GENERATE, GENERATE, decode, description="model.generate of transformers", by_transformers=True)

    return in_faster_format(workload, arm)


def in_faster_format(workload: Workload, make: Callable[[LoadedModel], Arm]) -> Arm:
    """The arm that ``make`` gives of the model, or of its float32 copy where that decodes faster and says so.

    Both are timed once a run, on a text of many kinds, where there is reason to.
    """
    own, theirs = make(workload.loaded), workload.theirs
    copy = None if theirs is None else theirs.in_float32()
    if theirs is None or copy is None:
        return own
    wide = make(copy)
    wide = replace(wide, model=copy, description=f"{wide.description}, in float32, which is faster for it here")
    if own.id not in theirs.is_widened:
        theirs.is_widened[own.id] = _is_faster(workload, wide, own)
    return wide if theirs.is_widened[own.id] else own


def _is_faster(workload: Workload, arm: Arm, other: Arm) -> bool:
    """Whether ``arm`` takes less time to decode as many tokens as will be decoded."""
    tokens = typical_text(workload.loaded, workload.runner.vocabulary_size)
    room = workload.loaded.context_length - _TRIAL_TOKENS
    prompt = Prompt("trial", "trial", "a text that comes with the tool")
    item = WorkItem("trial", prompt, tuple(tokens[: min(_TRIAL_PROMPT, room)]), Limits(_TRIAL_TOKENS))
    try:
        gains = [
            _whole_seconds(workload, other.decode(item)) - _whole_seconds(workload, arm.decode(item))
            for _ in range(_TRIAL_ROUNDS + 1)
        ]
    except RivalError:  # it says so where it is measured
        return False
    return sum(gains[1:]) > 0.0  # the first warms up


def _whole_seconds(workload: Workload, made: RawGeneration) -> float:
    """Seconds of a short generation, as if it had been as long as those to come."""
    steps = max(len(made.tokens) - made.first_tokens, 1)
    return made.prefill_seconds + made.decode_seconds / steps * workload.options.max_new_tokens


def contender_arm(workload: Workload, draft: Draft) -> Arm:
    """A self-speculative arm whose id tells this draft from every other, in logs too."""
    return self_speculative_arm(workload, draft, contender_id(draft))


def contender_id(draft: Draft) -> str:
    """The id of the arm that `contender_arm` makes of a draft."""
    return f"{SELF_SPECULATIVE}:{short_hash(draft.describe())[:8]}"


def counts_beside(skip_set: SkipSet) -> tuple[int, int]:
    """How many attentions and MLPs a set leaves out that is measured beside ``skip_set``, uniform or random.

    Such a set keeps the first attention: it is untouchable in every model tried.
    """
    return min(len(skip_set.attention), skip_set.num_layers - 1), len(skip_set.mlp)


def reference_arms(workload: Workload, main: Arm, *, uniform_and_random: bool) -> list[Arm]:
    """The A-A run, model.generate, the empty set, and uniform and random skipping of as many sub-layers."""
    assert main.draft is not None
    arms = [autoregressive_arm(workload, NULL), guarded(generate_arm(workload))]
    skip_set = main.draft.skip_set
    if workload.sampler.greedy and workload.loaded.dtype != torch.float32:
        # What verification alone does to the output: the yardstick for numerical ties.
        policy = main.draft.policy
        if policy.kind is PolicyKind.COST_AWARE:  # that would never draft at the full model's cost
            policy = DraftPolicy(max_draft_tokens=policy.max_draft_tokens)
        empty = Draft(SkipSet.empty(skip_set.num_layers), policy)
        arms.append(self_speculative_arm(workload, empty, EMPTY, EMPTY))
    if not uniform_and_random or skip_set.is_empty:
        return arms
    counts = counts_beside(skip_set)
    others = {
        "uniform": SkipSet.uniform(skip_set.num_layers, *counts),
        "random": SkipSet.random(skip_set.num_layers, *counts, seed=workload.options.seed),
    }
    for name, other in others.items():
        arms.append(self_speculative_arm(workload, replace(main.draft, skip_set=other), name, name))
    return arms

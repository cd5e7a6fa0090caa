"""Who competes beside the contenders: what a user would pick instead, and a draft's own parts and policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, experts_a_token
from selfspec_tune.draft.dialects import Dialect
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sources import labels
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import Arm, counts_beside, generate_arm, guarded, self_speculative_arm
from selfspec_tune.measure.rivals import (
    DRAFT_MODEL,
    draft_model_arm,
    early_exit_arm,
    prompt_lookup_arm,
    unavailable_arm,
)
from selfspec_tune.measure.workload import Workload
from selfspec_tune.models import load_model
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, ModelOptions

UNIFORM = "uniform"
EXIT_FRACTION = 3
SKIPS, COPIES, COPIES_AND_SKIPS, EXPERTS = "skips-alone", "copies-alone", "copies-and-skips", "experts-alone"
POLICIES = tuple(f"policy-{kind}" for kind in PolicyKind)
# Rules that do not count costs draft blindly: longer drafts only lose more.
_MOST_BY_RULE = 6
_DEFAULT = DraftPolicy()


@dataclass(frozen=True, slots=True)
class System:
    """Another self-speculative system: how it decides when a draft ends, and where that was read."""

    name: str
    policy: DraftPolicy
    description: str


SELF_SD = System(
    "self-sd",
    DraftPolicy(
        PolicyKind.ADAPTIVE,
        max_draft_tokens=12,
        exit_threshold=0.6,
        target_acceptance=0.9,
        step=0.01,
        acceptance_momentum=0.5,
        threshold_momentum=0.9,
    ),
    # evaluate_sum.ipynb and evaluate_code.ipynb of dilab-zju/self-speculative-decoding; there the
    # threshold is carried over from answer to answer, here every answer begins with the same one.
    "Self-SD's policy: adaptive threshold from .6, at most 12 tokens, as in its published evaluation",
)
SWIFT = System(
    "swift",
    DraftPolicy(PolicyKind.THRESHOLD, max_draft_tokens=25, exit_threshold=0.8),
    # swift_draft of hemingkx/SWIFT. It also verifies the next likeliest tokens beside the drafted
    # chain in one tree; here the chain alone is drafted.
    "SWIFT's policy: fixed threshold .8, at most 25 tokens, as in its code; the chain without its tree",
)
SYSTEMS = {Dialect.SELF_SD: SELF_SD, Dialect.SWIFT: SWIFT}


def system_of(dialect: str | None) -> System | None:
    """The system whose files are in ``dialect``, if its policy is known here."""
    return next((system for known, system in SYSTEMS.items() if known == dialect), None)


def rival_arms(
    workload: Workload, main: Arm, request: BenchRequest, loading: ModelOptions, reporter: Reporter
) -> list[Arm]:
    """Every rival of ``main``; those that cannot run here are among them and say why when they are asked to.

    Raises `UsageError` where the exit layer does not fit the model, or the draft model's name
    leads nowhere.
    """
    arms = [
        guarded(generate_arm(workload)),
        prompt_lookup_arm(workload),
        early_exit_arm(workload, exit_layer(request.early_exit, workload.loaded.num_layers)),
    ]
    if request.draft_model is not None:
        arms.append(_draft_model(workload, request.draft_model, loading, reporter))
    return [*arms, uniform_arm(workload, main)]


def exit_layer(asked: int | None, num_layers: int) -> int:
    """The layer to leave after: a third of the model unless one was asked for. Raises `UsageError`."""
    if asked is None:
        return max(1, round(num_layers / EXIT_FRACTION))
    if not 1 <= asked < num_layers:
        raise UsageError(
            f"`early_exit` {asked}: the model has {num_layers} layers; expected 1 to {num_layers - 1}, "
            "the number of layers that draft."
        )
    return asked


def uniform_arm(workload: Workload, main: Arm) -> Arm:
    """As many sub-layers as ``main`` skips, evenly spread, under its policy; kept ones in full precision."""
    assert main.draft is not None
    skip_set = main.draft.skip_set
    uniform = SkipSet.uniform(skip_set.num_layers, *counts_beside(skip_set))
    draft = Draft(uniform, main.draft.policy, vocabulary=main.draft.vocabulary)
    if uniform.is_empty:
        return unavailable_arm(UNIFORM, "the measured draft skips nothing, so there is nothing to spread evenly.")
    return self_speculative_arm(workload, draft, UNIFORM, UNIFORM)


def _draft_model(workload: Workload, name: str, loading: ModelOptions, reporter: Reporter) -> Arm:
    """The draft model in the format and on the device of the model itself."""
    loaded = workload.loaded
    reporter.stage("load", f"{name}, to draft")
    try:
        drafter = load_model(
            name,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            trust_remote_code=loading.trust_remote_code,
            allow_pickle=loading.allow_pickle,
        )
    except UsageError:
        raise
    except SelfSpecError as error:
        return unavailable_arm(DRAFT_MODEL, str(error), description=f"drafted by {name}")
    return draft_model_arm(workload, drafter)


@dataclass(frozen=True, slots=True)
class Part:
    """A draft made from the measured one, under a name that says what is left of it."""

    name: str
    about: str
    draft: Draft


def part_arms(workload: Workload, contenders: Sequence[Arm]) -> list[Arm]:
    """An arm for every part of the first contender, but those that are a contender already."""
    main = contenders[0].draft
    assert main is not None
    known = [arm.draft for arm in contenders if arm.draft is not None]
    return [_arm(workload, part) for part in distinct(parts_of(main), known)]


def parts_of(main: Draft) -> Iterator[Part]:
    """The parts of ``main`` and ``main`` under every other policy; some may be equal.

    What ``main`` does without has no part: no skip set, no copies at lower precision, no other source.
    With nothing skipped, drafts at the model's own precision would cost as much as decoding.
    """
    nothing_skipped = SkipSet.empty(main.skip_set.num_layers)
    by_model = main.by_model
    sources = [source.label for source in main.sources]
    has_skips, has_copies = not main.skip_set.is_empty, not main.precision.is_same
    if has_skips:
        alone = replace(
            by_model, precision=DraftPrecision(), policy=rule(main.policy, PolicyKind.THRESHOLD), experts=None
        )
        yield Part(SKIPS, f"the skip set at the model's own precision, without {labels(' and ')}", alone)
    if has_copies:
        alone = replace(by_model, skip_set=nothing_skipped, experts=None)
        yield Part(COPIES, f"the low-precision copies with nothing skipped, without {labels(' and ')}", alone)
    if main.experts is not None:
        alone = replace(by_model, skip_set=nothing_skipped, precision=DraftPrecision())
        yield Part(EXPERTS, f"{experts_a_token(main.experts)}, nothing skipped, without {labels(' and ')}", alone)
    if has_copies and sources:
        yield Part(COPIES_AND_SKIPS, f"the draft without its {' and '.join(sources)}", by_model)
    if has_copies and has_skips and sources:
        kept = replace(main, skip_set=nothing_skipped)
        yield Part(f"copies-and-{'-and-'.join(sources)}", "the draft with nothing skipped", kept)
    for source in main.sources:
        alone = Draft(nothing_skipped, main.policy, sources=(source,), model_drafts=False)
        yield Part(f"{source.label}-alone", f"the {source.label} alone ({source.alone})", alone)
    for kind, name in zip(PolicyKind, POLICIES, strict=True):
        if kind is not main.policy.kind:
            yield Part(name, "the draft under another policy", replace(main, policy=rule(main.policy, kind)))


def rule(policy: DraftPolicy, kind: PolicyKind) -> DraftPolicy:
    """``policy`` itself where it is of ``kind``, else what a user would take instead of it.

    A cost-aware policy keeps the longest draft and the prior; the others draft up to 6 tokens
    with the exit threshold of ``policy`` where that has one.
    """
    if policy.kind is kind:
        return policy
    if kind is PolicyKind.COST_AWARE:
        return DraftPolicy(kind, policy.max_draft_tokens, prior=policy.prior)
    has_threshold = policy.kind in (PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE)
    threshold = policy.exit_threshold if has_threshold else _DEFAULT.exit_threshold
    return DraftPolicy(kind, min(policy.max_draft_tokens, _MOST_BY_RULE), threshold)


def distinct(parts: Iterable[Part], known: Iterable[Draft]) -> Iterator[Part]:
    """Those whose draft is not ``known`` and that no earlier part has."""
    seen = set(known)
    for part in parts:
        if part.draft not in seen:
            seen.add(part.draft)
            yield part


def _arm(workload: Workload, part: Part) -> Arm:
    """Its id tells this draft from every other, so that a log may hold the parts of several drafts."""
    arm_id = f"{part.name}:{short_hash(part.draft.describe())[:8]}"
    arm = self_speculative_arm(workload, part.draft, arm_id, part.name)
    # The prior is eleven figures that no reader wants in a sentence.
    return replace(arm, description=f"{part.about}; {replace(part.draft.policy, prior=None)}")

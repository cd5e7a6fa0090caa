"""Who competes under ``bench --parts``: what the measured draft is made of, each alone, and its other policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import Arm, self_speculative_arm
from selfspec_tune.measure.workload import Workload
from selfspec_tune.skip_set import SkipSet

SKIPS, COPIES = "skips-alone", "copies-alone"
COPIES_AND_SKIPS, COPIES_AND_LOOKUP = "copies-and-skips", "copies-and-lookup"
LOOKUP = "lookup-alone"
PARTS = (SKIPS, COPIES, COPIES_AND_SKIPS, COPIES_AND_LOOKUP, LOOKUP)
POLICIES = tuple(f"policy-{kind}" for kind in PolicyKind)

# Rules that do not count costs draft blindly: longer drafts only lose more.
_MOST_BY_RULE = 6
_DEFAULT = DraftPolicy()


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

    What ``main`` does without has no part: no skip set, no copies at lower precision, no lookup.
    With nothing skipped, drafts at the model's own precision would cost as much as decoding.
    """
    nothing_skipped = SkipSet.empty(main.skip_set.num_layers)
    by_model = replace(main, ngram=None, model_drafts=True)
    has_skips, has_copies = not main.skip_set.is_empty, not main.precision.is_same
    if has_skips:
        alone = replace(by_model, precision=DraftPrecision(), policy=rule(main.policy, PolicyKind.THRESHOLD))
        yield Part(SKIPS, "the skip set at the model's own precision, without lookup", alone)
    if has_copies:
        alone = replace(by_model, skip_set=nothing_skipped)
        yield Part(COPIES, "the low-precision copies with nothing skipped, without lookup", alone)
    if has_copies and main.ngram is not None:
        yield Part(COPIES_AND_SKIPS, "the draft without its lookup", by_model)
    if has_copies and has_skips:
        yield Part(COPIES_AND_LOOKUP, "the draft with nothing skipped", replace(main, skip_set=nothing_skipped))
    if main.ngram is not None:
        alone = Draft(nothing_skipped, main.policy, ngram=main.ngram, model_drafts=False)
        yield Part(LOOKUP, f"the lookup alone ({main.ngram.alone})", alone)
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

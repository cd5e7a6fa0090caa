"""What drafts: the skip set, the precision of what is kept, and when to stop drafting.

A policy sees a drafted token's probability only to decide whether to draft one
more; every drafted token is verified. That is what keeps the output exact
whatever the policy does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from selfspec_tune.errors import UsageError
from selfspec_tune.skip_set import SkipSet


class PolicyKind(StrEnum):
    """When a draft ends, apart from its maximum length."""

    FIXED = "fixed"
    THRESHOLD = "threshold"
    ADAPTIVE = "adaptive"


class Precision(StrEnum):
    """Numeric precision of the kept sub-layers while drafting."""

    SAME = "same"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """Draft length rule.

    ``fixed`` drafts ``max_draft_tokens`` every round. ``threshold`` also stops at the
    first token whose draft probability is below ``exit_threshold`` (that token is still
    verified). ``adaptive`` moves the threshold after each verification by the rule of
    Draft & Verify (Zhang et al., ACL 2024, section 3.3): an exponential mean ``m`` of the
    acceptance rate is held near ``target_acceptance``; the constants are the paper's.
    """

    kind: PolicyKind = PolicyKind.THRESHOLD
    max_draft_tokens: int = 6
    exit_threshold: float = 0.6
    target_acceptance: float = 0.9
    step: float = 0.01
    acceptance_momentum: float = 0.5
    threshold_momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.max_draft_tokens < 1:
            raise UsageError(f"max_draft_tokens is {self.max_draft_tokens}; expected at least 1.")
        if not 0.0 <= self.exit_threshold <= 1.0:
            raise UsageError(f"exit_threshold is {self.exit_threshold}; expected a probability from 0 to 1.")

    @property
    def needs_probability(self) -> bool:
        """Whether drafting must compute each drafted token's probability."""
        return self.kind is not PolicyKind.FIXED

    def start(self) -> PolicyState:
        """A fresh state, for one generation."""
        return PolicyState(self)


@dataclass(slots=True)
class PolicyState:
    """The moving part of a policy within one generation."""

    policy: DraftPolicy
    threshold: float = field(init=False)
    acceptance: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.threshold = self.policy.exit_threshold

    def wants_more(self, num_drafted: int, probability: float) -> bool:
        """Whether to draft another token after ``num_drafted``, the last one drawn at ``probability``."""
        if num_drafted >= self.policy.max_draft_tokens:
            return False
        if num_drafted == 0:  # the adaptive threshold is not clamped and may climb above 1
            return True
        return self.policy.kind is PolicyKind.FIXED or probability >= self.threshold

    def update(self, accepted: int, drafted: int) -> None:
        """Adapt to a verification that accepted ``accepted`` of ``drafted`` tokens."""
        policy = self.policy
        if policy.kind is not PolicyKind.ADAPTIVE or drafted == 0:
            return
        momentum = policy.acceptance_momentum
        self.acceptance = momentum * self.acceptance + (1 - momentum) * accepted / drafted
        if self.acceptance < policy.target_acceptance:
            proposal = self.threshold + policy.step
        elif drafted >= policy.max_draft_tokens:
            proposal = self.threshold
        else:
            proposal = self.threshold - policy.step
        momentum = policy.threshold_momentum
        self.threshold = momentum * self.threshold + (1 - momentum) * proposal


@dataclass(frozen=True, slots=True)
class Draft:
    """How tokens are drafted: `SkipSet`, precision of the kept sub-layers, `DraftPolicy`.

    ``vocabulary`` restricts drafting to the first so many token ids: only those rows of
    the output head are read, a view of the same tensor. BPE vocabularies are ordered by
    merge rank, so frequent tokens come first. Verification always sees the whole
    vocabulary, so a token outside is never lost, only never drafted. None: all of it.
    """

    skip_set: SkipSet
    policy: DraftPolicy = DraftPolicy()
    precision: Precision = Precision.SAME
    vocabulary: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The ``draft`` object of skip.json (the skip set stands beside it there)."""
        return {
            "policy": self.policy.kind.value,
            "max_draft_tokens": self.policy.max_draft_tokens,
            "exit_threshold": self.policy.exit_threshold,
            "precision": self.precision.value,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_dict(cls, skip_set: SkipSet, draft: dict[str, Any]) -> Draft:
        """The inverse of `to_dict`; unknown fields are ignored, missing ones take defaults."""
        default = DraftPolicy()
        policy = DraftPolicy(
            kind=PolicyKind(draft.get("policy", default.kind)),
            max_draft_tokens=int(draft.get("max_draft_tokens", default.max_draft_tokens)),
            exit_threshold=float(draft.get("exit_threshold", default.exit_threshold)),
        )
        precision = Precision(draft.get("precision", Precision.SAME))
        return cls(skip_set, policy, precision, draft.get("vocabulary"))

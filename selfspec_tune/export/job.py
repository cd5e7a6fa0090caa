"""What an export of a draft is to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from selfspec_tune.draft import DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.export.decoding import Sampling
from selfspec_tune.export.layout import LayerBlock, surviving_blocks
from selfspec_tune.export.target import Target

AnyTarget = TypeVar("AnyTarget", bound=Target)


@dataclass(frozen=True)
class Job(Generic[AnyTarget]):
    """A draft to write.

    Attributes:
        skip_set: the sub-layers that it leaves out.
        target: the model.
        weights: number format of the draft's weights, where its format has a choice; ``copy``: the target's own.
        draft_tokens: how many tokens a runtime should draft.
        policy: when the draft, sharing the model's cache, goes on.
        vocabulary: how many token ids it then covers; None: all.
        is_standalone: whether it was searched as a draft with keys and values of its own, and the policy is that one's.
        sampling: what a launch line holds a runtime to.
    """

    skip_set: SkipSet
    target: AnyTarget
    weights: str = "copy"
    draft_tokens: int = 4
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    vocabulary: int | None = None
    is_standalone: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def exit_threshold(self) -> float:
        """Below which probability a runtime should stop drafting; 0: never."""
        is_threshold = self.is_standalone and self.policy.kind is PolicyKind.THRESHOLD
        return self.policy.exit_threshold if is_threshold else 0.0

    @cached_property
    def blocks(self) -> list[LayerBlock]:
        """The layers that are left."""
        return surviving_blocks(self.skip_set)

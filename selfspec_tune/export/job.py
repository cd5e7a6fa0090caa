"""What an export is made from, and what a format leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selfspec_tune.draft import DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.export.checkpoint import Checkpoint
from selfspec_tune.export.decoding import MeasuredSampling
from selfspec_tune.export.layout import LayerBlock, Layout, Outline, read_layout, read_outline, surviving_blocks


@dataclass(frozen=True)
class Job:
    """A draft to write.

    Attributes:
        skip_set: the sub-layers that it leaves out.
        model: the target's name, as a user gives it.
        folder: the target's checkpoint; None where only a GGUF file is at hand.
        gguf: the target's GGUF file, where one is at hand.
        weights: number format of the draft's weights in a GGUF file; ``copy``: the target's own.
        draft_tokens: how many tokens a runtime should draft.
        policy: when the draft, sharing the model's cache, goes on.
        vocabulary: how many token ids it then covers; None: all.
        is_standalone: whether it was searched as a draft with keys and values of its own, and the policy is that one's.
        target: how a launch line names it.
        revision: the target's branch, tag or commit on the hub; None: its default, or it lies elsewhere.
        sampling: what a launch line holds a runtime to.
    """

    skip_set: SkipSet
    model: str
    folder: Path | None
    gguf: Path | None = None
    weights: str = "copy"
    draft_tokens: int = 4
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    vocabulary: int | None = None
    is_standalone: bool = False
    target: str = ""
    revision: str | None = None
    sampling: MeasuredSampling = field(default_factory=MeasuredSampling)

    @property
    def exit_threshold(self) -> float:
        """Below which probability a runtime should stop drafting; 0: never."""
        is_threshold = self.is_standalone and self.policy.kind is PolicyKind.THRESHOLD
        return self.policy.exit_threshold if is_threshold else 0.0

    @cached_property
    def blocks(self) -> list[LayerBlock]:
        """The layers that are left."""
        return surviving_blocks(self.skip_set)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The target's weights. Raises `FileFormatError` or `UnsupportedModelError`."""
        assert self.folder is not None
        return Checkpoint(self.folder)

    @cached_property
    def outline(self) -> Outline:
        """The target's modules, without a look at its weights. Raises `UnsupportedModelError`."""
        assert self.folder is not None
        return read_outline(self.folder)

    @cached_property
    def layout(self) -> Layout:
        """The target's modules and tensors. Raises `UnsupportedModelError`."""
        return read_layout(self.checkpoint, self.outline)

    @cached_property
    def fingerprint(self) -> str:
        """Of the target's checkpoint, as `LoadedModel.fingerprint` has it, read weight by weight."""
        from selfspec_tune.models.loaded import fingerprint

        return fingerprint(self.layout.model, self.checkpoint.read)


@dataclass(frozen=True, slots=True)
class Written:
    """What a format wrote: bytes of weights, the line that runs it by runtime, and what a user should know.

    ``settings``: what the draft carries besides, such as its policy.
    """

    weight_bytes: int
    launch: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of drafts that run by themselves.

    ``write`` puts the files into an empty folder, given where that will lie, and refuses by `UnsupportedModelError`
    or `SkipSetError` what it cannot represent. ``needs_gguf``: it is made from the target's GGUF file. ``is_alone``:
    the draft has keys and values, and weights, of its own.
    """

    about: str
    write: Callable[[Job, Path, Path], Written]
    needs_gguf: bool = False
    is_alone: bool = True

"""An export to write: the model that the draft is made from, and what the draft is to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from selfspec_tune.draft import DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SelfSpecError, SkipSetError, UsageError
from selfspec_tune.export.blocks import LayerBlock, surviving_blocks
from selfspec_tune.export.checkpoint import Checkpoint, checkpoint_folder, named_in_lines, own_file
from selfspec_tune.export.decoding import MeasuredSampling, settings_of_folder
from selfspec_tune.export.layout import Layout, Outline, read_layout, read_outline
from selfspec_tune.models.origin import find_origin
from selfspec_tune.requests import ExportRequest
from selfspec_tune.results import SkipConfig


@dataclass(frozen=True)
class Target(ABC):
    """The model that a draft is made from; ``model``: its name, as a user gives it."""

    model: str

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of an `ExportManifest` that lead to it."""
        return {"model": self.model}

    @property
    @abstractmethod
    def in_lines(self) -> str:
        """How a line that starts a runtime names it."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Its depth."""

    @property
    @abstractmethod
    def own_settings(self) -> dict[str, Any]:
        """What it asks of decoding besides its weights, as `selfspec_tune.models.generation_settings` has it."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of its weights."""

    @abstractmethod
    def fingerprint(self, config: SkipConfig | None) -> str | None:
        """Of the model as `LoadedModel.fingerprint` has it; None where it cannot be told from its weights."""

    @abstractmethod
    def check(self, skip_set: SkipSet, config: SkipConfig | None) -> None:
        """Raise `SkipSetError` unless it is the model that the skip set was searched for, as far as can be told."""


@dataclass(frozen=True)
class CheckpointTarget(Target):
    """A checkpoint in ``folder``; ``needs_weights``: whether the draft takes any of them."""

    folder: Path
    needs_weights: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "revision": self.revision}

    @property
    def revision(self) -> str | None:
        """Its commit on the hub; None: it lies elsewhere."""
        return self.folder.name if find_origin(self.model).source == "hub" else None

    @property
    def in_lines(self) -> str:
        return named_in_lines(self.model)

    @property
    def num_layers(self) -> int:
        return self.outline.num_layers

    @property
    def own_settings(self) -> dict[str, Any]:
        return settings_of_folder(self.folder)

    @property
    def num_bytes(self) -> int:
        return self.checkpoint.num_bytes

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights. Raises `FileFormatError` or `UnsupportedModelError`."""
        return Checkpoint(self.folder)

    @cached_property
    def outline(self) -> Outline:
        """The modules, without a look at the weights. Raises `UnsupportedModelError`."""
        return read_outline(self.folder)

    @cached_property
    def layout(self) -> Layout:
        """The modules and tensors. Raises `UnsupportedModelError`."""
        return read_layout(self.checkpoint, self.outline)

    @cached_property
    def weights_fingerprint(self) -> str:
        """As `LoadedModel.fingerprint` has it, read weight by weight. Raises where they cannot be read so."""
        from selfspec_tune.models.loaded import fingerprint

        return fingerprint(self.layout.model, lambda name: self.layout.names.read(self.checkpoint, name))

    def fingerprint(self, config: SkipConfig | None) -> str | None:
        try:
            return self.weights_fingerprint
        except SelfSpecError:
            if self.needs_weights:
                raise
            return None  # a draft without weights of its own is none the worse for that

    def check(self, skip_set: SkipSet, config: SkipConfig | None) -> None:
        if self.num_layers != skip_set.num_layers:
            raise SkipSetError(
                f"{self.model} has {self.num_layers} layers, the skip set is for a model of {skip_set.num_layers}. "
                "Give the model that was searched with `model`."
            )
        if config is None:
            return
        found = self.fingerprint(config)
        if found not in (None, config.model.fingerprint):
            raise SkipSetError(
                f"The skip set was searched for {config.model.id} (fingerprint {config.model.fingerprint}); "
                f"{self.model} is another model (fingerprint {found}). Give the model that was searched with `model`."
            )


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
        experts: to how many experts of each mixture a token goes in the draft; None: to as many as in the model.
        is_standalone: whether it was searched as a draft with keys and values of its own, and the policy is that one's.
        sampling: what a launch line holds a runtime to.
    """

    skip_set: SkipSet
    target: AnyTarget
    weights: str = "copy"
    draft_tokens: int = 4
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    vocabulary: int | None = None
    experts: int | None = None
    is_standalone: bool = False
    sampling: MeasuredSampling = field(default_factory=MeasuredSampling)

    @property
    def exit_threshold(self) -> float:
        """Below which probability a runtime should stop drafting; 0: never."""
        is_threshold = self.is_standalone and self.policy.kind is PolicyKind.THRESHOLD
        return self.policy.exit_threshold if is_threshold else 0.0

    @property
    def expert_settings(self) -> dict[str, int]:
        """What a manifest says of ``experts``; nothing where they are as many as in the model."""
        return {} if self.experts is None else {"experts": self.experts}

    @cached_property
    def blocks(self) -> list[LayerBlock]:
        """The layers that are left."""
        return surviving_blocks(self.skip_set)


def stated_model(request: ExportRequest, config: SkipConfig | None, file: Path | None = None) -> str:
    """The target's name: that of the request, or of the skip.json, or the ``file`` itself.

    Raises `UsageError` where none of them says.
    """
    model = request.model or (config.model.id if config else "") or (str(file) if file else "")
    if not model:
        raise UsageError(f"{request.source} does not say which model it is for; name it with `model`.")
    return model


def checkpoint_target(
    request: ExportRequest, config: SkipConfig | None, stack: ExitStack, *, needs_weights: bool = True
) -> CheckpointTarget:
    """The target's checkpoint, at the commit that was searched unless another is asked for.

    Raises as `checkpoint_folder` does, and `UsageError` where nothing says which model it is.
    """
    model = stated_model(request, config)
    revision = request.revision or (config.model.revision if config and request.model is None else None)
    folder = stack.enter_context(checkpoint_folder(model, revision))
    if needs_weights:
        own_file(folder, "config.json")
    return CheckpointTarget(model, folder, needs_weights)

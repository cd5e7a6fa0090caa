"""What an export format is: how a draft of it is written, run beside our own engine, and benched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from selfspec_tune.draft import DraftPolicy
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.export.decoding import Forecast, forecast
from selfspec_tune.export.job import AnyTarget, Job
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import OF_SOME_FORMATS, ExportRequest, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import ExportManifest, SkipConfig

if TYPE_CHECKING:
    from selfspec_tune.export.runtimes.completion import Runtime, TimedRuntime
    from selfspec_tune.export.simulation import Simulation
    from selfspec_tune.models import LoadedModel

AGAIN = "Export it again with `force`."


@dataclass(frozen=True, slots=True)
class Written:
    """What a format wrote: bytes of weights, the line that runs it by runtime, and what a user should know.

    ``settings``: what the draft carries besides, such as its policy.
    """

    weight_bytes: int
    launch: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class ExportFormat(ABC, Generic[AnyTarget]):
    """A format of drafts that a runtime runs; `selfspec_tune.export.formats` registers an object of each.

    Attributes:
        name: as ``to`` has it.
        about: what it is, in a line.
        made_from: what of the target it takes, in words.
        options: those of `OF_SOME_FORMATS` that it takes.
        is_alone: whether the draft has weights, keys and values of its own.
        keeps_experts: whether a token goes to as many experts of a mixture as in the draft that was searched.
        files: names of what it may write, and of nothing else: an export that is replaced is deleted.
        runtime: what verifies and benches it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    made_from: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    is_alone: ClassVar[bool] = True
    keeps_experts: ClassVar[bool] = False
    files: ClassVar[frozenset[str]]
    runtime: ClassVar[RuntimeName]

    def check(self, request: ExportRequest) -> None:
        """Raise `UsageError` where an option is given that means nothing to the format, or a value that it lacks."""
        for name in OF_SOME_FORMATS:
            if name not in self.options and getattr(request, name) is not None:
                raise UsageError(
                    f"`to` {self.name} is made from {self.made_from}, so `{name}` means nothing. Leave it out."
                )

    @abstractmethod
    def target(self, request: ExportRequest, config: SkipConfig | None, stack: ExitStack) -> AnyTarget:
        """The model to make it from, at hand until ``stack`` ends; ``config``: the skip.json, where it is one of ours.

        Raises `UsageError` where the request does not lead to it, and what finding it raises.
        """

    @abstractmethod
    def write(self, job: Job[AnyTarget], folder: Path, final: Path) -> Written:
        """Put the files into ``folder``, which is empty, for a folder that will be ``final``.

        Raises `UnsupportedModelError` or `SkipSetError` for what it cannot represent.
        """

    def owns(self, name: str) -> bool:
        """Whether it may write a file of this name, by its path in the folder."""
        return name in self.files

    def code(self, folder: Path) -> Mapping[str, str]:
        """The text of every file of code, by name, that an export which nobody touched has in ``folder``.

        Raises `FileFormatError` where what is there leads to other code.
        """
        return {}

    def forecast(self, config: SkipConfig | None, policy: DraftPolicy) -> Forecast:
        """How many tokens it should draft, and what it is expected to gain."""
        return forecast(config)

    def require_runtime(self) -> None:
        """Raise `UsageError`, saying how to install it, where the runtime is not installed; transformers always is."""

    @abstractmethod
    def pair(self, loaded: LoadedModel, folder: Path, manifest: ExportManifest) -> tuple[Runtime, Simulation]:
        """The target with the export in ``folder`` in the runtime, and our simulation of its loop, to verify it.

        ``loaded``: the target in float32. Raises what loading either raises.
        """

    @abstractmethod
    def timed(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> TimedRuntime:
        """The target, alone and with the export, in the runtime, to bench it.

        Raises `FileFormatError` where the manifest does not lead to them, and what loading either raises.
        """


def not_ours(file: Path) -> FileFormatError:
    """That a file of an export is not as we write it."""
    return FileFormatError(f"{file} is not what this version of the program writes, and no other code is run. {AGAIN}")

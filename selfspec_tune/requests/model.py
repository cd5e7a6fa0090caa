"""Which model, how it is loaded, and a look at how it runs on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selfspec_tune.errors import UsageError

DEFAULT_MODEL = "smollm2-135m"


class Dtype(StrEnum):
    """Number format of the weights; auto is the checkpoint's own where our runners serve it."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class RunnerChoice(StrEnum):
    """Which engine decodes; auto takes the fastest that proves equal to the reference."""

    AUTO = "auto"
    NATIVE = "native"
    GRAPHS = "graphs"
    FAST = "fast"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is loaded. ``runner``: auto, native, graphs, fast or reference.

    ``revision``: branch, tag or commit of a hub id; None: the hub's default.
    """

    name: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    runner: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class DoctorRequest:
    """One look at the machine, and at ``model`` where one is given.

    ``skip_set``: the draft to time, as text or a file of any dialect. ``contexts``: tokens of
    context to time at, the first of them most thoroughly; empty: those of the cost model.
    """

    model: ModelOptions | None = None
    skip_set: str | None = None
    contexts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.contexts):
            raise UsageError(f"`contexts` {min(self.contexts)}: expected lengths of at least 1 token.")
        if self.model is None and (self.skip_set is not None or self.contexts):
            raise UsageError("`skip_set` and `contexts` are about a model's steps. Name the model with `model`.")

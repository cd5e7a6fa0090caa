"""Drafts for other runtimes: which to write, and how one is measured there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from selfspec_tune.checks import check_number
from selfspec_tune.errors import UsageError
from selfspec_tune.requests.draft import LONGEST_DRAFT
from selfspec_tune.requests.prompts import PromptOptions


class DraftFormat(StrEnum):
    """Drafts that an export writes for other runtimes."""

    HF_DRAFT = "hf-draft"
    HF_ZERO = "hf-zero"
    NAS = "nas"
    GGUF = "gguf"
    TRANSFORMERS_GENERATE = "transformers-generate"


GGUF_WEIGHTS = ("copy", "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: skip.json, or another project's file.
        out: the directory to make.
        model: the target, where ``source`` does not lead to it.
        gguf: its GGUF file, where the model itself is none.
        weights: of a GGUF draft: copy, f32, f16 or bf16.
        draft_tokens: at most, of a draft; None: what the search found best.
        force: whether an earlier export in ``out`` is replaced.
        revision: branch, tag or commit of the target on the hub; None: that which was searched, as far as known.
    """

    source: Path
    format: DraftFormat
    out: Path
    model: str | None = None
    gguf: Path | None = None
    weights: str = "copy"
    draft_tokens: int | None = None
    force: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in GGUF_WEIGHTS:
            raise UsageError(f"`weights` {self.weights}: expected {', '.join(GGUF_WEIGHTS)}.")
        if self.draft_tokens is not None:
            length = f"at least 1, up to {LONGEST_DRAFT}"
            check_number("draft_tokens", self.draft_tokens, 1, LONGEST_DRAFT, length, whole=True)


class RuntimeName(StrEnum):
    """Runtimes that a bench drives."""

    LLAMACPP = "llamacpp"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class RuntimeBenchRequest:
    """A bench of the export in ``folder``, in ``runtime``.

    ``dtype`` and ``device``: of transformers, as `ModelOptions` has them; a GGUF file states its own. ``context``: of
    llama.cpp's cache. ``log``: where runs are kept as they come; ``fresh`` measures again what it holds.
    """

    folder: Path
    runtime: RuntimeName
    prompts: PromptOptions
    dtype: str = "auto"
    device: str = "auto"
    context: int = 4096
    log: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        asked = self.prompts.max_new_tokens
        if self.runtime is RuntimeName.LLAMACPP and asked >= self.context:
            raise UsageError(
                f"`max_new_tokens` {asked}: the runtime's context has {self.context} positions, for a prompt and its "
                f"answer. Give less than {self.context}."
            )

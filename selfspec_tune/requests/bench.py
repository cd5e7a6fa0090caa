"""One bench, or a bench at several values of one thing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from selfspec_tune.checks import check_fields, check_number
from selfspec_tune.errors import UsageError
from selfspec_tune.requests.draft import LONGEST_DRAFT
from selfspec_tune.requests.sampling import LARGEST_TEMPERATURE, SMALLEST_TEMPERATURE, TEMPERATURES

_MOST_ROUNDS = 1000
SHORTEST_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One bench. ``skip_files`` in any dialect, ``skip_sets`` as text or files; with neither, the newest study.

    Model and prompts are those of the (first) skip.json or study; the overrides replace single
    fields of its `ModelOptions` and `PromptOptions`, as (field, value) pairs. Where there is no
    study they replace fields of the defaults, the model's ``name`` among them. ``draft_overrides``
    are fields of `DraftOptions` (policy, max_draft_tokens, exit_threshold, a source's name, precision, experts) that
    every skip set then drafts with.

    With a ``log`` (see `log_beside`) raw runs are kept as they come and a bench resumes from
    them; ``fresh`` puts an earlier log aside and measures anew.

    ``rivals``: what a user would pick instead runs on every prompt too, with ``draft_model`` (a
    model's name) and ``early_exit`` (layers kept; None: a third) for those rivals that need one.
    ``parts``: so do the parts of the first skip set's draft, and that draft under the other policies.
    """

    skip_files: tuple[Path, ...] = ()
    skip_sets: tuple[str, ...] = ()
    model_overrides: tuple[tuple[str, object], ...] = ()
    prompt_overrides: tuple[tuple[str, object], ...] = ()
    draft_overrides: tuple[tuple[str, object], ...] = ()
    studies: Path = Path("studies")
    rounds: int = 1
    reference_prompts: int = 8
    uniform_and_random: bool = True
    allow_calibration: bool = False
    rivals: bool = False
    draft_model: str | None = None
    early_exit: int | None = None
    parts: bool = False
    log: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.reference_prompts < 1:
            raise UsageError(
                f"`reference_prompts` {self.reference_prompts}: expected at least 1; without model.generate beside it "
                "no speedup is stated."
            )
        check_number("rounds", self.rounds, 1, _MOST_ROUNDS, f"at least 1, up to {_MOST_ROUNDS}", whole=True)
        if self.early_exit is not None and self.early_exit < 1:
            raise UsageError(f"`early_exit` {self.early_exit}: expected at least 1, the number of layers that draft.")
        for option, value in (("draft_model", self.draft_model), ("early_exit", self.early_exit)):
            if value is not None and not self.rivals:
                raise UsageError(f"`{option}` {value}: it sets up a rival; add `rivals` to measure rivals at all.")
        if self.fresh and self.log is None:
            raise UsageError("`fresh` measures again what a file holds; give that file with `out`.")


def log_beside(result: Path) -> Path:
    """Where the raw runs behind a result file are kept: ``bench.runs.jsonl`` beside ``bench.json``."""
    stem = result.stem if result.suffix == ".json" else result.name
    return result.with_name(f"{stem}.runs.jsonl")


class SweepKind(StrEnum):
    """What a sweep varies: prompt tokens, sampling temperature, or the longest draft."""

    CONTEXT = "context"
    TEMPERATURE = "temperature"
    MAX_DRAFT = "max-draft"


SWEEP_VALUES: dict[SweepKind, tuple[float, ...]] = {
    SweepKind.CONTEXT: (256, 512, 1024, 2048, 4096),
    SweepKind.TEMPERATURE: (0.0, 0.3, 0.7, 1.0),
    SweepKind.MAX_DRAFT: (1, 2, 3, 4, 6, 8, 12, 16),
}
_LEAST = {SweepKind.CONTEXT: SHORTEST_CONTEXT, SweepKind.TEMPERATURE: 0, SweepKind.MAX_DRAFT: 1}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A bench at several ``values`` of one thing, interleaved; None: those of `SWEEP_VALUES` that the model allows."""

    bench: BenchRequest
    kind: SweepKind
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind is SweepKind.TEMPERATURE and "temperature" in dict(self.bench.prompt_overrides):
            raise UsageError("`sweep` temperature sets the temperature itself; give `sweep_values`, not `temperature`.")
        if self.bench.rivals:
            raise UsageError("`rivals` run beside one bench; leave them out with `sweep`.")
        if self.bench.parts:
            raise UsageError("`parts` run beside one bench; leave them out with `sweep`.")
        if self.values is None:
            return
        if self.kind is SweepKind.TEMPERATURE:
            greedy = tuple(0.0 if 0 < value < SMALLEST_TEMPERATURE else value for value in self.values)
            object.__setattr__(self, "values", greedy)
        if len(set(self.values)) < max(2, len(self.values)):
            raise UsageError(f"`sweep_values` {_joined(self.values)}: expected at least two values, all different.")
        for value in self.values:
            self._check(value)
        object.__setattr__(self, "values", tuple(sorted(self.values)))

    def _check(self, value: float) -> None:
        least, is_whole = _LEAST[self.kind], self.kind is not SweepKind.TEMPERATURE
        if not math.isfinite(value) or value < least or (is_whole and value != int(value)):
            kind = "whole numbers" if is_whole else "numbers"
            raise UsageError(f"`sweep_values` {value:g}: `sweep` {self.kind} takes {kind} from {least} on.")
        if self.kind is SweepKind.TEMPERATURE:
            check_number("sweep_values", value, 0, LARGEST_TEMPERATURE, TEMPERATURES)
        if self.kind is SweepKind.MAX_DRAFT and value > LONGEST_DRAFT:
            raise UsageError(f"`sweep_values` {value:g}: expected drafts of at most {LONGEST_DRAFT} tokens.")


def _joined(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)

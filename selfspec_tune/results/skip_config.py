"""``skip.json``: the file that a user keeps."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer, model_validator

from selfspec_tune.checks import only_known, shown
from selfspec_tune.draft import Draft, DraftPolicy, DraftSource
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sources import SOURCES, from_json
from selfspec_tune.errors import UsageError
from selfspec_tune.intervals import Verdict
from selfspec_tune.results.bench import ModelInfo, Ratio, SkipLayers, TaskResult
from selfspec_tune.results.record import Document, Record, check_provenance

SKIP_FILE = "skip.json"
_SOURCES = TypeAdapter(dict[str, dict[str, Any] | None])


class DraftSettings(Record):
    """How the skip set drafts, in the words of `selfspec_tune.draft.Draft.to_dict`; a field besides for each source.

    Other fields than a draft's are refused, in its parts too: a misspelt one would draft in another way.
    """

    policy: Literal["fixed", "threshold", "adaptive", "cost-aware"]
    max_draft_tokens: int
    exit_threshold: float
    precision: str | dict[str, Any] = "same"
    vocabulary: int | None = None
    model_drafts: bool = True
    experts: int | None = None

    @property
    def sources(self) -> tuple[DraftSource, ...]:
        """What drafts beside the model. Raises `UsageError`."""
        return from_json(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _with_sources(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return value | _SOURCES.validate_python({name: value.get(name) for name in SOURCES})

    @model_serializer(mode="wrap")
    def _in_order(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As `Draft.to_dict` has it: ``model_drafts`` after the sources."""
        values = plain(self)
        sources = {name: values.pop(name) for name in SOURCES if name in values}
        last = ("model_drafts", "experts")
        before = {name: values.pop(name) for name in DraftSettings.model_fields if name not in last}
        if values.get("experts") is None:
            values.pop("experts", None)
        return {**before, **sources, **values}

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        known = {*DraftSettings.model_fields, *SOURCES, *DraftPolicy.__dataclass_fields__} - {"kind"}
        try:
            only_known("it", self.model_dump(), sorted(known))
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self


class Score(Record):
    """What the skip set achieved on prompts that the search never read, and on which split.

    ``withheld_because``: why the bench gave no verdict (it then reads ``undecided`` here). ``degenerate_share``,
    ``num_too_short``, ``without_degenerate``, ``decode_tokens_per_second``, ``of_memory_limit``: as in `MethodResult`.
    """

    verdict: Verdict
    withheld_because: list[str] = []
    end_to_end_speedup: Ratio | None = None
    decode_speedup: Ratio | None = None
    decode_tokens_per_second: float | None = Field(default=None, ge=0)
    of_memory_limit: Ratio | None = None
    acceptance_rate: float | None = Field(default=None, ge=0, le=1)
    mean_accepted_tokens: float | None = Field(default=None, ge=0)
    split: str = "test"
    num_prompts: int = Field(default=0, ge=0)
    degenerate_share: float | None = Field(default=None, ge=0, le=1)
    num_too_short: int = Field(default=0, ge=0)
    without_degenerate: TaskResult | None = None


def newest_skip_file(studies: Path) -> Path | None:
    """The skip.json that was written last under ``studies``; None where there is none."""
    return max(studies.glob(f"**/{SKIP_FILE}"), key=lambda path: path.stat().st_mtime, default=None)


class SkipConfig(Document):
    """``skip.json``, what a user keeps: the skip set, how it drafts, its score, its origin.

    ``objective``: whether the draft shared the model's cache when it was searched and scored, or stood alone.
    ``provenance["prompts"]`` holds the hash of every prompt, by split.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/skip-config"

    schema_name: Literal["selfspec-tune/skip-config"] = Field(default="selfspec-tune/skip-config", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    skip: SkipLayers
    draft: DraftSettings
    objective: Literal["shared", "standalone"] = "shared"
    score: Score
    provenance: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        """That no field seems to be a misspelt one."""
        if isinstance(value, dict):
            absent = cls.model_fields.keys() - value.keys() - {"schema_name"}
            for name in [name for name in value if name not in (*cls.model_fields, "schema")]:
                if meant := get_close_matches(str(name).lower(), absent):
                    raise ValueError(f"{shown(name)} is no field of it; expected {meant[0]}, if that is meant")
        return value

    def check(self) -> None:
        """Raise `UsageError` where it is no draft of such a model, or does not say of both kinds what is skipped."""
        if missing := sorted(SkipLayers.model_fields.keys() - self.skip.model_fields_set):
            raise UsageError(f"skip lacks {missing[0]}; expected a list of layers, an empty one where none is skipped.")
        skip_set = self.skip_set()
        try:
            Draft.from_dict(skip_set, self.draft.model_dump())
        except UsageError as error:
            raise UsageError(f"draft: {error}") from error
        check_provenance(self.provenance)

    def skip_set(self) -> SkipSet:
        """The skip set. Raises `SkipSetError` if it names layers that the model lacks."""
        return SkipSet(self.model.num_layers, tuple(self.skip.attention), tuple(self.skip.mlp))

    def prompt_hashes(self, *splits: str) -> frozenset[str]:
        """Hashes of the prompts in the named splits, say ``calibration`` and ``selection``."""
        prompts = self.provenance.get("prompts", {})
        return frozenset(hash_ for split in splits for hash_ in prompts.get(split, ()))

    @property
    def read_prompts(self) -> frozenset[str]:
        """Hashes of the prompts that the search read, and before it those searches that it began from."""
        return self.prompt_hashes("calibration", "selection", "earlier")

"""``skip.json``: the file that a user keeps."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.bench import ModelInfo
from selfspec_tune.results.methods import Ratio, SkipLayers, TaskResult
from selfspec_tune.results.record import Document, Record
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.statistics import Verdict


class DraftSettings(Record):
    """How the skip set drafts, in the words of `selfspec_tune.draft.Draft.to_dict`."""

    policy: Literal["fixed", "threshold", "adaptive", "cost-aware"]
    max_draft_tokens: int
    exit_threshold: float
    precision: str | dict[str, Any] = "same"
    vocabulary: int | None = None
    ngram: dict[str, int] | None = None
    model_drafts: bool = True


class Score(Record):
    """What the skip set achieved on prompts that the search never read, and on which split.

    ``withheld_because``: why the bench gave no verdict (it then reads ``undecided`` here). ``degenerate_share`` and
    ``without_degenerate`` as in `MethodResult`.
    """

    verdict: Verdict
    withheld_because: list[str] = []
    end_to_end_speedup: Ratio | None = None
    decode_speedup: Ratio | None = None
    acceptance_rate: float | None = None
    mean_accepted_tokens: float | None = None
    split: str = "test"
    num_prompts: int = 0
    degenerate_share: float | None = None
    without_degenerate: TaskResult | None = None


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

"""``selfspec-export.json``: what an exported draft says of itself."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, computed_field, model_serializer, model_validator

from selfspec_tune.checks import number, shown
from selfspec_tune.draft.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.errors import SkipSetError
from selfspec_tune.results.bench import SkipLayers
from selfspec_tune.results.record import Document, Record

MANIFEST = "selfspec-export.json"
EXACT_LOGPROB = 1e-3  # in float32
_MOSTLY = 0.95  # of tokens and counts, where both sides round differently
Closeness = Literal["exact", "close", "different"]
_Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class ExportedLayer(Record):
    """A layer of the draft: the target's layers that its attention and its MLP come from; None where it has none."""

    attention: _Layer | None
    mlp: _Layer | None


class ExportSampling(Record):
    """What the lines that start a runtime hold it to; temperature 0: greedy."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)


class Verification(Record):
    """What a runtime's answers to some prompts say, beside our own engine's in float32.

    Attributes:
        tokens: of the draft alone, over all prompts; ``equal_tokens`` of them are our choice too.
        logprob_difference: the largest along them; None where the runtime gives none.
        same_texts: prompts whose text by speculation is the target's own; all are, but in a runtime that ``rounds``.
        drafted: and ``accepted``, by the runtime's counts; ``expected_…``: by our simulation of its loop.
        left_out: prompts to which the runtime's answer could not be compared token by token.
        rounds: whether the runtime computes several tokens at once with other roundings than one.
    """

    runtime: str
    prompts: _Count
    tokens: _Count
    equal_tokens: _Count
    logprob_difference: float | None = Field(ge=0)
    same_texts: _Count
    drafted: _Count
    accepted: _Count
    expected_drafted: _Count
    expected_accepted: _Count
    left_out: _Count = 0
    rounds: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_verdict(cls, value: Any) -> Any:
        """The verdict that a file states is derived anew."""
        if not isinstance(value, dict):
            return value
        if value.get("verdict", "exact") not in get_args(Closeness):
            raise ValueError(f"verdict is {shown(value['verdict'])}; expected {', '.join(get_args(Closeness))}")
        return {name: field for name, field in value.items() if name != "verdict"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Closeness:
        """exact; close, as where the runtime computes with other roundings than ours; or different."""
        counts = self.drafted, self.accepted
        expected = self.expected_drafted, self.expected_accepted
        is_whole = self.equal_tokens == self.tokens and self.same_texts == self.prompts and counts == expected
        if is_whole and (self.logprob_difference or 0.0) <= EXACT_LOGPROB:
            return "exact"
        few = 1 - _MOSTLY
        is_near = self.equal_tokens >= _MOSTLY * self.tokens and abs(_rate(*counts) - _rate(*expected)) <= few
        is_own = self.rounds or 2 * self.same_texts > self.prompts
        return "close" if is_near and is_own else "different"


def _rate(drafted: int, accepted: int) -> float:
    return accepted / drafted if drafted else 0.0


class ExportManifest(Document):
    """``selfspec-export.json``, which lies in an export's folder.

    Attributes:
        format: which of the registered formats; one that this program lacks loads as well.
        model: the target, as it was named; ``revision`` its commit on the hub; ``gguf`` its GGUF file, where the draft
            was made from that; ``model_fingerprint``: None where it was not compared.
        read_prompts: hashes of the prompts that the search read; None: not stated, as in older files.
        layers: of the draft, in running order.
        draft_bytes: of its weights; ``target_bytes``: of the target's, None where they are not to be compared.
        draft_tokens: how many a runtime should draft at a time.
        settings: what the draft carries besides, by the format; empty in older files.
        generation_config: what the target's asks for and nothing was measured with.
        launch: the line that runs it, by runtime.
        notes: what a user should know.
        files: name to bytes, without this file.
        verified: what came of running it, where that was asked for.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/export"

    schema_name: Literal["selfspec-tune/export"] = Field(default="selfspec-tune/export", alias="schema")
    version: Literal[1] = 1
    format: str
    model: str
    revision: str | None = None
    gguf: str | None = None
    model_fingerprint: str | None
    skip: SkipLayers
    read_prompts: list[str] | None = None
    layers: list[ExportedLayer] = Field(max_length=2 * MOST_LAYERS)
    draft_bytes: _Count
    target_bytes: _Count | None
    draft_tokens: int = Field(ge=1, le=1024)
    settings: dict[str, float | int | None] = {}
    sampling: ExportSampling = ExportSampling()
    generation_config: dict[str, Any] = {}
    launch: dict[str, str]
    notes: list[str]
    files: dict[str, _Count]
    verified: Verification | None = None

    @model_serializer(mode="wrap")
    def _without_what_nobody_looked_at(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        if self.verified is None:
            del plain["verified"]
        return plain

    def check(self) -> None:
        """Raise `UsageError` where its layers and its skip set are not of one model, or a setting has no meaning."""
        depths = set()
        for kind in ("attention", "mlp"):
            kept = [layer for block in self.layers if (layer := getattr(block, kind)) is not None]
            found = [*kept, *getattr(self.skip, kind)]
            if sorted(found) != list(range(len(found))) or kept != sorted(kept):
                raise SkipSetError(f"layers and skip do not hold the {kind} of each of the target's layers once.")
            depths.add(len(found))
        if len(depths) > 1:
            raise SkipSetError("layers and skip hold more layers' attention than layers' mlp, or fewer.")
        if any(block.attention is block.mlp is None for block in self.layers):
            raise SkipSetError("layers holds one without attention and without mlp; expected one of them at least.")
        try:
            self.skip_set()
        except SkipSetError as error:
            raise SkipSetError(f"skip: {error}") from error
        if "exit_threshold" in self.settings:
            number("settings.exit_threshold", self.settings["exit_threshold"], 0.0, 1.0)

    def skip_set(self) -> SkipSet:
        """The sub-layers that the draft leaves out."""
        depth = len(self.skip.attention) + sum(block.attention is not None for block in self.layers)
        return SkipSet(depth, tuple(self.skip.attention), tuple(self.skip.mlp))

    @property
    def experts(self) -> int | None:
        """To how many experts of each mixture a token goes in the draft; None: to as many as in the model."""
        experts = self.settings.get("experts")
        return None if experts is None else int(experts)

    @property
    def exit_threshold(self) -> float:
        """Below which probability a runtime should stop drafting; 0: never, or not stated."""
        return self.settings.get("exit_threshold") or 0.0

    @property
    def target(self) -> tuple[str, str | None]:
        """What the draft was made from: a GGUF file, or a model and its revision."""
        return (self.gguf, None) if self.gguf is not None else (self.model, self.revision)

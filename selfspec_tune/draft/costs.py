"""What the engine's steps cost on a machine, and what a run of given rounds would take.

Pure values without torch: the engine measures them, the search and the cost-aware policy
read them, the study keeps them. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfspec_tune.checks import numbers, shown, whole
from selfspec_tune.draft.class_costs import (
    MOST_SECONDS,
    MOST_TOKENS,
    ClassCosts,
    a_time,
    by_precision,
    cost_of,
    on_line,
)
from selfspec_tune.draft.draft import Draft
from selfspec_tune.draft.precision import Precision
from selfspec_tune.draft.rounds import Round, num_tokens
from selfspec_tune.draft.skip_set import MOST_LAYERS
from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind, sublayers_of
from selfspec_tune.errors import UsageError

_LEAST_SECONDS = 1e-12  # of a step that a file may state


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Steps of one draft: a plain decode step, a draft step, and a full pass over 1, 2, … tokens.

    ``verify[k]`` verifies ``k`` drafted tokens, so ``verify[0]`` is a plain decode step. ``cold`` is what
    the first draft step of a round takes more than the next: the verification before it has taken its
    weights out of the caches. ``guess`` is what each looked-up token adds to the draft step that tries it.
    Raises ValueError where a full pass takes no time, or anything less than none.
    """

    decode: float
    draft: float
    verify: tuple[float, ...]
    cold: float = 0.0
    guess: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.draft, self.cold, self.guess)
        if self.decode <= 0 or least < 0 or not self.verify or min(self.verify) <= 0:
            raise ValueError(f"{self}: expected positive seconds and at least one verification")

    def verification(self, num_drafted: int) -> float:
        """Verifying ``num_drafted`` tokens; past the last one timed, on the line of the table's second half."""
        last = len(self.verify) - 1
        if num_drafted <= last:
            return self.verify[num_drafted]
        middle = last // 2
        slope = (self.verify[last] - self.verify[middle]) / max(last - middle, 1)
        return self.verify[last] + max(slope, 0.0) * (num_drafted - last)

    def seconds(self, rounds: Sequence[Round]) -> float:
        """Decode time of a real or replayed run."""
        passes = [one.draft_passes for one in rounds]
        num_guesses = sum(one.num_guesses or 0 for one in rounds)
        drafting = sum(passes) * self.draft + sum(map(bool, passes)) * self.cold + num_guesses * self.guess
        return drafting + sum(self.verification(one.num_drafted) for one in rounds)

    def speedup(self, rounds: Sequence[Round]) -> float:
        """Decode speedup of such a run over plain decoding of as many tokens."""
        return num_tokens(rounds) * self.decode / self.seconds(rounds)


@dataclass(frozen=True, slots=True)
class ContextCosts:
    """What moves with the context: passes over 1, 2, … tokens after ``length`` tokens, and one attention."""

    length: int
    verify: tuple[float, ...]
    attention: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"length": self.length, "verify": list(self.verify), "attention": self.attention}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ContextCosts:
        """The inverse of `to_dict`. Raises KeyError, TypeError or `UsageError` for another value."""
        length = whole("length", value["length"], 0, MOST_TOKENS)
        return cls(length, _verify(value), a_time("attention", value["attention"]))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of the engine's steps on this machine, after ``length`` tokens of context.

    Attributes:
        verify: a full pass over 1, 2, … tokens; ``verify[0]`` is a plain decode step.
        heads: what a draft step costs apart from its sub-layers (embedding, final norm, head over the
            draft's vocabulary, picking the token), by the head's precision.
        attention: one kept attention with its norms, by precision; of those that ``others`` do not name.
        mlp: one kept MLP with its norms, by precision; of those likewise.
        contexts: the same at other lengths, in rising order; between them costs lie on a line.
        vocabularies: the head at full precision, by the number of token ids that it covers.
        vocabulary: how many of them ``heads`` is for.
        cold: seconds that a round's first draft step takes more than the next: about the same for every
            draft, for it is the part of the weights that the caches could have held.
        guess: what each looked-up token adds to the draft step that tries it, as a share of that.
        residual: root mean square of the fit's relative errors over the draft steps that were timed:
            how far the engine is from costing the sum of its parts.
        others: sub-layers that cost something else than their kind does.
    """

    verify: tuple[float, ...]
    heads: Mapping[Precision, float]
    attention: Mapping[Precision, float]
    mlp: Mapping[Precision, float]
    num_layers: int
    contexts: tuple[ContextCosts, ...] = ()
    length: int = 0
    vocabularies: Mapping[int, float] = field(default_factory=dict)
    vocabulary: int | None = None
    residual: float = 0.0
    cold: float = 0.0
    guess: float = 0.0
    others: tuple[ClassCosts, ...] = ()

    @property
    def decode(self) -> float:
        """One autoregressive step."""
        return self.verify[0]

    def draft_step(self, draft: Draft, context: float | None = None) -> float:
        """One step of ``draft`` after ``context`` tokens (default: the length that the model is for).

        Raises ValueError for a precision that was not measured.
        """
        more, others = self._attention_beyond(context), self._other_of()
        seconds = cost_of(self.heads, draft.precision.head)
        for sublayer, precision in draft.kept():
            other = others.get(sublayer.index)
            if other is not None:
                seconds += other.step(precision, context, draft.experts)
                continue
            cost = cost_of(self._of_kind(sublayer), precision)
            seconds += max(cost + more, 0.0) if sublayer.is_attention else cost
        return seconds

    def by_class(self) -> list[tuple[str, Mapping[Precision, float]]]:
        """Seconds of one sub-layer by precision, with the name of its class; the kinds that are like no other first."""
        named = {index for other in self.others for index in other.sublayers}
        kinds = {sublayer.kind for sublayer in sublayers_of(self.num_layers) if sublayer.index not in named}
        tables = {SubLayerKind.ATTENTION: ("attention", self.attention), SubLayerKind.MLP: ("MLP", self.mlp)}
        plain = [table for kind, table in tables.items() if kind in kinds]
        return [*plain, *((other.name, other.seconds) for other in self.others)]

    def of(self, sublayer: SubLayerId) -> Mapping[Precision, float]:
        """Seconds of a sub-layer in a draft step, by precision."""
        other = self._other_of().get(sublayer.index)
        return self._of_kind(sublayer) if other is None else other.seconds

    def of_sublayer(self, sublayer: SubLayerId, precision: Precision) -> float:
        """Seconds of a sub-layer in a draft step. Raises ValueError for a precision that was not measured."""
        return cost_of(self.of(sublayer), precision)

    def _of_kind(self, sublayer: SubLayerId) -> Mapping[Precision, float]:
        return self.attention if sublayer.is_attention else self.mlp

    def _other_of(self) -> dict[int, ClassCosts]:
        return {index: other for other in self.others for index in other.sublayers}

    def steps(self, draft: Draft, context: float | None = None) -> StepCosts:
        """The steps of ``draft`` after ``context`` tokens (default: the length that the model is for)."""
        verify = self.verify
        if context is not None and self.contexts:
            lengths = [entry.length for entry in self.contexts]
            columns = zip(*(entry.verify for entry in self.contexts), strict=True)
            verify = tuple(on_line(lengths, column, context) for column in columns)
        step = self.draft_step(draft, context)
        return StepCosts(verify[0], step, verify, self.cold, self.guess * step)

    def with_vocabulary(self, vocabulary: int) -> CostModel:
        """The same where drafts cover ``vocabulary`` token ids, one of those measured.

        The head at lower precisions is taken to shrink in the same proportion. Raises
        ValueError for a vocabulary that was not measured.
        """
        if vocabulary == self.vocabulary:
            return self
        if self.vocabulary is None or vocabulary not in self.vocabularies:
            known = ", ".join(map(str, self.vocabularies)) or "none"
            raise ValueError(f"no cost of a head over {vocabulary} token ids was measured; measured: {known}")
        ratio = self.vocabularies[vocabulary] / max(self.vocabularies[self.vocabulary], 1e-12)
        heads = {precision: ratio * seconds for precision, seconds in self.heads.items()}
        heads[Precision.SAME] = self.vocabularies[vocabulary]
        return replace(self, heads=heads, vocabulary=vocabulary)

    def _attention_beyond(self, context: float | None) -> float:
        """What one attention costs more after ``context`` tokens than after ``length``: its longer cache."""
        if context is None or not self.contexts:
            return 0.0
        lengths, seconds = zip(*((entry.length, entry.attention) for entry in self.contexts), strict=True)
        return on_line(lengths, seconds, context) - on_line(lengths, seconds, self.length)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "num_layers": self.num_layers,
            "length": self.length,
            "verify": list(self.verify),
            "heads": {precision.value: seconds for precision, seconds in self.heads.items()},
            "attention": {precision.value: seconds for precision, seconds in self.attention.items()},
            "mlp": {precision.value: seconds for precision, seconds in self.mlp.items()},
            "vocabulary": self.vocabulary,
            "vocabularies": {str(size): seconds for size, seconds in self.vocabularies.items()},
            "contexts": [entry.to_dict() for entry in self.contexts],
            "residual": self.residual,
            "cold_seconds": self.cold,
            "guess": self.guess,
            **({"others": [other.to_dict() for other in self.others]} if self.others else {}),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CostModel:
        """The inverse of `to_dict`. Raises KeyError, TypeError, ValueError or `UsageError` for another value."""
        verify = _verify(value)
        vocabularies = value.get("vocabularies", {})
        vocabulary = value.get("vocabulary")
        known = {int(size): a_time("vocabularies", seconds) for size, seconds in vocabularies.items()}
        if vocabulary is not None and known and vocabulary not in known:
            raise UsageError(f"vocabulary is {shown(vocabulary)}; expected one of {', '.join(map(str, known))}.")
        contexts = tuple(ContextCosts.from_dict(entry) for entry in value.get("contexts", ()))
        lengths = [entry.length for entry in contexts]
        if lengths != sorted(set(lengths)):
            raise UsageError(f"contexts have the lengths {shown(lengths)}; expected rising ones.")
        if any(len(entry.verify) != len(verify) for entry in contexts):
            raise UsageError("contexts verify other numbers of tokens than the model does; expected as many.")
        num_layers = whole("num_layers", value["num_layers"], 1, MOST_LAYERS)
        others = tuple(ClassCosts.from_dict(entry) for entry in value.get("others", ()))
        named = [index for other in others for index in other.sublayers]
        if len(named) > len(set(named)) or max(named, default=0) >= 2 * num_layers:
            raise UsageError(f"others name the sub-layers {shown(named)}; expected each once, of {2 * num_layers}.")
        return cls(
            verify=verify,
            heads=by_precision("heads", value["heads"]),
            attention=by_precision("attention", value["attention"]),
            mlp=by_precision("mlp", value["mlp"]),
            num_layers=num_layers,
            contexts=contexts,
            length=whole("length", value.get("length", 0), 0, MOST_TOKENS),
            vocabularies=known,
            vocabulary=vocabulary,
            residual=a_time("residual", value.get("residual", 0.0)),
            cold=a_time("cold_seconds", value.get("cold_seconds", 0.0)),
            guess=a_time("guess", value.get("guess", 0.0)),
            others=others,
        )


def _verify(value: Mapping[str, Any]) -> tuple[float, ...]:
    """Passes of some time each, one at least."""
    steps = numbers("verify", value["verify"], _LEAST_SECONDS, MOST_SECONDS)
    if not steps:
        raise UsageError("verify is empty; expected the seconds of one step or more.")
    return steps

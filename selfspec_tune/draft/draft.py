"""A draft: everything that decides which tokens are proposed; kept in files, carried over to another depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfspec_tune.checks import shown, whole
from selfspec_tune.draft import sources as known
from selfspec_tune.draft.policy import DraftPolicy
from selfspec_tune.draft.precision import DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.source import DraftSource
from selfspec_tune.draft.sublayer import SubLayerId, sublayers_of
from selfspec_tune.errors import UsageError

MOST_TOKEN_IDS = 10_000_000  # many more than any vocabulary has
MOST_EXPERTS = 10_000  # the same for a mixture
_POLICY, _SAME = DraftPolicy(), DraftPrecision()


@dataclass(frozen=True, slots=True)
class Draft:
    """How tokens are drafted: `SkipSet`, `DraftPolicy`, precision of the kept sub-layers, sources beside the model.

    ``vocabulary`` restricts the model's drafts to the first so many token ids: only those
    rows of the output head are read, a view of the same tensor, and those of the ids past them that the
    context holds. BPE vocabularies are ordered by merge rank, so frequent tokens come first. Verification always
    sees the whole vocabulary, so a token outside is never lost, only never drafted. None: all of it.

    Each of ``sources`` is asked in turn what may follow the context, and the model drafts where
    nothing is found; with ``model_drafts`` false the sources draft alone.

    ``experts``: to how many experts of each kept mixture a token goes; None: to as many as in the model.
    """

    skip_set: SkipSet
    policy: DraftPolicy = _POLICY
    precision: DraftPrecision = _SAME
    vocabulary: int | None = None
    sources: tuple[DraftSource, ...] = ()
    model_drafts: bool = True
    experts: int | None = None

    def __post_init__(self) -> None:
        self.precision.check(self.skip_set.num_layers)
        if self.vocabulary is not None:
            whole("vocabulary", self.vocabulary, 1, MOST_TOKEN_IDS)
        if self.experts is not None:
            whole("experts", self.experts, 1, MOST_EXPERTS)
        if not self.sources and not self.model_drafts:
            labels = known.labels(" nor a ")
            raise UsageError(f"A draft with neither a {labels} nor the model drafts nothing; give it one of them.")
        # So that drafts which do the same are equal.
        sources = known.in_order(self.sources if self.model_drafts else (source.alone for source in self.sources))
        object.__setattr__(self, "sources", sources)

    @property
    def by_model(self) -> Draft:
        """The same without its sources: the model alone drafts."""
        return replace(self, sources=(), model_drafts=True)

    @property
    def sublayers(self) -> tuple[Precision | None, ...]:
        """At which precision each sub-layer drafts, in running order; None where it is skipped."""
        flags = self.skip_set.to_flags()
        return tuple(None if skip else self.precision.of(index) for index, skip in enumerate(flags))

    def covers(self, vocabulary_size: int) -> int:
        """How many of the first ids the model drafts from, out of so many."""
        return min(self.vocabulary or vocabulary_size, vocabulary_size)

    def kept(self) -> Iterator[tuple[SubLayerId, Precision]]:
        """What stays of the sub-layers, in running order, each with its precision."""
        for sublayer, precision in zip(sublayers_of(self.skip_set.num_layers), self.sublayers, strict=True):
            if precision is not None:
                yield sublayer, precision

    def with_sublayers(self, sublayers: Sequence[Precision | None]) -> Draft:
        """The same draft with its sub-layers so.

        What is skipped is noted at the precision that most others have, so that drafts which
        compute the same are equal.
        """
        kept = Counter(precision for precision in sublayers if precision is not None)
        usual = kept.most_common(1)[0][0] if kept else Precision.SAME
        return replace(
            self,
            skip_set=SkipSet.from_flags([precision is None for precision in sublayers]),
            precision=replace(self.precision, sublayers=tuple(precision or usual for precision in sublayers)),
        )

    def with_sublayer(self, index: int, precision: Precision | None) -> Draft:
        """The same draft with sub-layer ``index`` at ``precision``; None: skipped."""
        sublayers = list(self.sublayers)
        sublayers[index] = precision
        return self.with_sublayers(sublayers)

    def with_head(self, precision: Precision) -> Draft:
        """The same draft with its output head at ``precision``."""
        return replace(self, precision=replace(self.precision, head=precision))

    @property
    def reductions(self) -> str:
        """What it leaves out: ``attn 3-5, int4, 1 expert a token``, or none."""
        skipped = [] if self.skip_set.is_empty else [str(self.skip_set)]
        return ", ".join([*skipped, *self.coarser]) or str(self.skip_set)

    @property
    def coarser(self) -> list[str]:
        """How it computes what it keeps, where that is otherwise than the model does: its precision, its experts."""
        precision = [] if self.precision.is_same else [str(self.precision)]
        return precision if self.experts is None else [*precision, experts_a_token(self.experts)]

    def describe(self) -> str:
        """The draft in one line that no other draft of the same model shares."""
        parts = [str(self.policy)]
        if self.vocabulary:
            parts.append(f"vocabulary {self.vocabulary}")
        if not self.precision.is_same:
            parts.append(f"precision {self.precision}")
        if self.experts is not None:
            parts.append(f"experts {self.experts}")
        parts += [f"{source}" if self.model_drafts else f"{source} alone" for source in self.sources]
        return f"{self.skip_set} ({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """The ``draft`` object of skip.json (the skip set stands beside it there); ``experts`` where it is told."""
        return {
            **self.policy.to_dict(),
            "precision": self.precision.to_json(),
            "vocabulary": self.vocabulary,
            **known.to_json(self.sources),
            "model_drafts": self.model_drafts,
            **({} if self.experts is None else {"experts": self.experts}),
        }

    @classmethod
    def from_dict(cls, skip_set: SkipSet, draft: dict[str, Any]) -> Draft:
        """The inverse of `to_dict`; unknown fields are ignored, missing ones take defaults. Raises `UsageError`."""
        model_drafts = draft.get("model_drafts", True)
        if not isinstance(model_drafts, bool):
            raise UsageError(f"model_drafts is {shown(model_drafts)}; expected true or false.")
        return cls(
            skip_set,
            DraftPolicy.from_dict(draft),
            DraftPrecision.from_json(draft.get("precision", "same"), skip_set.num_layers),
            draft.get("vocabulary"),
            known.from_json(draft),
            model_drafts,
            draft.get("experts"),
        )


def experts_a_token(count: int) -> str:
    """``1 expert a token``."""
    return f"{count} expert{'' if count == 1 else 's'} a token"


def rescaled(draft: Draft, num_layers: int) -> Draft:
    """``draft`` for a model of ``num_layers`` layers: each sub-layer as at the same relative depth.

    The first layer stays the first and the last the last; where one of these is kept, it stays kept. Else,
    of attentions and of MLPs, the same share is skipped as before, to the nearest whole number; so a
    draft may come out that skips nothing.
    """
    own = draft.sublayers
    if len(own) == 2 * num_layers:
        return draft
    attention, mlp = (_stretched(own[kind::2], num_layers) for kind in (0, 1))
    sublayers = [precision for pair in zip(attention, mlp, strict=True) for precision in pair]
    head_alone = DraftPrecision(head=draft.precision.head)
    return replace(draft, skip_set=SkipSet.empty(num_layers), precision=head_alone).with_sublayers(sublayers)


def _stretched(choices: Sequence[Precision | None], count: int) -> list[Precision | None]:
    """``choices`` (None: skipped) over ``count`` places instead of their own number."""
    step = (len(choices) - 1) / max(count - 1, 1)
    places = [step * i for i in range(count)]
    num_skipped = round(count * choices.count(None) / len(choices))
    kept = [i for i, precision in enumerate(choices) if precision is not None]
    guarded = {end for end, own in ((0, 0), (count - 1, len(choices) - 1)) if own in kept}
    order = sorted((i for i in range(count) if i not in guarded), key=lambda i: (_outside(choices, places[i]), i))
    skipped = set(order[:num_skipped])
    return [
        None if i in skipped else choices[min(kept, key=lambda j: abs(j - place))] for i, place in enumerate(places)
    ]


def _outside(choices: Sequence[Precision | None], place: float) -> tuple[float, float]:
    """How far ``place``, between two of ``choices``, is from what is skipped: the share of the two kept, then steps."""
    before = int(place)
    after = min(before + 1, len(choices) - 1)
    share = place - before
    kept = (1 - share) * (choices[before] is not None) + share * (choices[after] is not None)
    return kept, min((abs(i - place) for i, precision in enumerate(choices) if precision is None), default=0.0)

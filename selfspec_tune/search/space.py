"""What a search may choose for a draft: which sub-layers to leave out, and at which precision the others draft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Draft, DraftPrecision, Precision

_UNTOUCHABLE = 0  # the first attention: no model tried drafts without it, and two runtimes cannot load such a draft


def _no_copies(draft: Draft) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The drafts that a search may propose.

    Attributes:
        base: what they begin from: nothing skipped; vocabulary and lookup are everyone's.
        sublayers: for each sub-layer the precisions that it may draft at; skipping it is allowed as well.
        heads: the precisions that the output head may draft at.
        copy_bytes: bytes of low-precision copies that a draft computes with.
        allowed_bytes: most bytes that they may take.
    """

    base: Draft
    sublayers: tuple[tuple[Precision, ...], ...]
    heads: tuple[Precision, ...]
    copy_bytes: Callable[[Draft], int] = _no_copies
    allowed_bytes: int = 0

    @classmethod
    def of_skips(cls, base: Draft) -> SearchSpace:
        """Sub-layers are skipped or draft as in ``base``: at the model's own precision, the paper's setting."""
        kept = tuple((base.precision.of(index),) for index in range(2 * base.skip_set.num_layers))
        return cls(base, kept, (base.precision.head,))

    @property
    def num_layers(self) -> int:
        return self.base.skip_set.num_layers

    @property
    def skippable(self) -> range:
        """Indices of the sub-layers that moves may leave out."""
        return range(_UNTOUCHABLE + 1, 2 * self.num_layers)

    @property
    def is_joint(self) -> bool:
        """Whether there is any precision to choose."""
        return len(self.heads) > 1 or any(len(precisions) > 1 for precisions in self.sublayers)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision that any sub-layer or the head may have."""
        return tuple(dict.fromkeys([*self.heads, *(p for precisions in self.sublayers for p in precisions)]))

    def admits(self, draft: Draft, *, beside: Draft | None = None) -> bool:
        """Whether the copies of ``draft`` fit into memory, ``beside`` those of another."""
        others = 0 if beside is None else self.copy_bytes(beside)
        return self.copy_bytes(draft) + others <= self.allowed_bytes

    def allowed(self, draft: Draft) -> Draft:
        """``draft`` with the base's choice wherever its own is none of this space's, whatever memory it takes."""
        kept = self.base.sublayers
        sublayers = [
            precision if precision in self.sublayers[i] or (precision is None and i in self.skippable) else kept[i]
            for i, precision in enumerate(draft.sublayers)
        ]
        head = draft.precision.head if draft.precision.head in self.heads else self.base.precision.head
        return replace(self.base, policy=draft.policy).with_sublayers(sublayers).with_head(head)

    def projected(self, draft: Draft) -> Draft:
        """The draft of this space that is nearest to ``draft``, of a model of the same depth."""
        return self.fitted(self.allowed(draft))

    def fitted(self, draft: Draft) -> Draft:
        """``draft`` with as many sub-layers as in the base, from the last backwards, as it takes to fit."""
        kept, index = self.base.sublayers, len(self.base.sublayers)
        while index > 0 and not self.admits(draft):
            index -= 1
            if draft.sublayers[index] is not None:
                draft = draft.with_sublayer(index, kept[index])
        return draft if self.admits(draft) else draft.with_head(self.base.precision.head)

    def with_vocabulary(self, vocabulary: int | None) -> SearchSpace:
        """The same with drafts over the first ``vocabulary`` token ids."""
        return replace(self, base=replace(self.base, vocabulary=vocabulary))

    def costed_by(self, costs: CostModel) -> SearchSpace:
        """The same without the precisions of which ``costs`` know nothing."""
        tables = costs.attention, costs.mlp
        return replace(
            self,
            sublayers=tuple(
                tuple(precision for precision in precisions if precision in tables[index % 2])
                for index, precisions in enumerate(self.sublayers)
            ),
            heads=tuple(precision for precision in self.heads if precision in costs.heads),
        )

    def without_copies(self) -> SearchSpace:
        """The same at the model's own precision alone."""
        plain = SearchSpace.of_skips(replace(self.base, precision=DraftPrecision()))
        return replace(plain, copy_bytes=self.copy_bytes, allowed_bytes=self.allowed_bytes)

    def skipping(self, indices: frozenset[int]) -> Draft:
        """The base without the sub-layers ``indices``."""
        kept = self.base.sublayers
        return self.base.with_sublayers([None if i in indices else kept[i] for i in range(len(kept))])

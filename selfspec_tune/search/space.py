"""What a search may choose for a draft, and the same as parameters of an Optuna trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from selfspec_tune.draft import AcceptancePrior, Draft, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.sublayer import SubLayerId, sublayers_of
from selfspec_tune.search.stages.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS, policies, with_prior

_UNTOUCHABLE = 0  # the first attention: no model tried drafts without it, and two runtimes cannot load such a draft
_SKIP, _HEAD, _EXPERTS = "skip", "head", "experts"
_POLICY, _LENGTH, _THRESHOLD = "policy", "max_draft_tokens", "exit_threshold"
_HAS_THRESHOLD = frozenset({PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE})


def _no_copies(draft: Draft) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The drafts that a search may propose.

    Attributes:
        base: what they begin from: nothing skipped; vocabulary and sources are everyone's.
        sublayers: for each sub-layer the precisions that it may draft at; skipping it is allowed as well.
        heads: the precisions that the output head may draft at.
        copy_bytes: bytes of low-precision copies that a draft computes with.
        allowed_bytes: most bytes that they may take.
        experts: to how many experts a token may go in a mixture; None: to as many as in the model.
    """

    base: Draft
    sublayers: tuple[tuple[Precision, ...], ...]
    heads: tuple[Precision, ...]
    copy_bytes: Callable[[Draft], int] = _no_copies
    allowed_bytes: int = 0
    experts: tuple[int | None, ...] = (None,)

    @classmethod
    def of_skips(cls, base: Draft) -> SearchSpace:
        """Sub-layers are skipped or draft as in ``base``: at the model's own precision, the paper's setting."""
        kept = tuple((base.precision.of(index),) for index in range(2 * base.skip_set.num_layers))
        return cls(base, kept, (base.precision.head,), experts=(base.experts,))

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

    @property
    def fewest_experts(self) -> int | None:
        """The fewest experts that a token may go to in a mixture, where drafts may differ from the model in that."""
        return min((number for number in self.experts if number is not None), default=None)

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
        experts = draft.experts if draft.experts in self.experts else self.base.experts
        return replace(self.base, policy=draft.policy, experts=experts).with_sublayers(sublayers).with_head(head)

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
        known = [costs.of(sublayer) for sublayer in sublayers_of(self.num_layers)]
        return replace(
            self,
            sublayers=tuple(
                tuple(precision for precision in precisions if precision in table)
                for precisions, table in zip(self.sublayers, known, strict=True)
            ),
            heads=tuple(precision for precision in self.heads if precision in costs.heads),
        )

    def without_copies(self) -> SearchSpace:
        """The same at the model's own precision alone."""
        plain = SearchSpace.of_skips(replace(self.base, precision=DraftPrecision()))
        return replace(plain, copy_bytes=self.copy_bytes, allowed_bytes=self.allowed_bytes, experts=self.experts)

    def skipping(self, indices: frozenset[int]) -> Draft:
        """The base without the sub-layers ``indices``."""
        kept = self.base.sublayers
        return self.base.with_sublayers([None if i in indices else kept[i] for i in range(len(kept))])


@dataclass(frozen=True, slots=True)
class Encoding:
    """One parameter for each thing that ``space`` and the policy leave to choose.

    ``as_reals``: each is a number from 0 to 1, of which every choice has an equal part, as the
    paper of Self-SD does it (skipped above a half); else a categorical value. ``prior`` is every
    cost-aware draft's; those draft up to the greatest length, for they find their own.
    """

    space: SearchSpace
    policies: tuple[PolicyKind, ...]
    draft_lengths: tuple[int, ...] = DRAFT_LENGTHS
    exit_thresholds: tuple[float, ...] = EXIT_THRESHOLDS
    prior: AcceptancePrior | None = None
    as_reals: bool = False

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """What there is to choose, by parameter; what has one value only is no parameter."""
        space = self.space
        choices: dict[str, tuple[Any, ...]] = {
            sublayer_parameter(i): (*(p.value for p in precisions), *((_SKIP,) if i in space.skippable else ()))
            for i, precisions in enumerate(space.sublayers)
        }
        choices[_HEAD] = tuple(precision.value for precision in space.heads)
        choices[_EXPERTS] = space.experts
        choices[_POLICY] = tuple(kind.value for kind in self.policies)
        choices = {name: values for name, values in choices.items() if len(values) > 1}
        choices[_LENGTH] = self.draft_lengths
        if _HAS_THRESHOLD.intersection(self.policies):
            choices[_THRESHOLD] = self.exit_thresholds
        return choices

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters for Optuna."""
        if self.as_reals:
            return {name: FloatDistribution(0.0, 1.0) for name in self.choices}
        return {name: CategoricalDistribution(values) for name, values in self.choices.items()}

    def draft(self, parameters: Mapping[str, Any]) -> Draft:
        """The draft that ``parameters`` stand for, cut down to the memory that its copies may take."""
        values = {name: self._value(parameters[name], choices) for name, choices in self.choices.items()}
        base = self.space.base
        sublayers = [_chosen(values.get(sublayer_parameter(i)), kept) for i, kept in enumerate(base.sublayers)]
        kind = PolicyKind(values.get(_POLICY, self.policies[0]))
        length = max(self.draft_lengths) if kind is PolicyKind.COST_AWARE else values[_LENGTH]
        (policy,) = policies(kind, [length], [values.get(_THRESHOLD, 0.0)])
        experts = values.get(_EXPERTS, base.experts)
        draft = replace(base, policy=with_prior(policy, self.prior), experts=experts).with_sublayers(sublayers)
        return self.space.fitted(draft.with_head(Precision(values.get(_HEAD, base.precision.head))))

    def parameters(self, draft: Draft) -> dict[str, Any]:
        """The inverse of `draft`; a length or threshold that is no choice becomes the nearest, a policy the first."""
        values: dict[str, Any] = {
            sublayer_parameter(i): _SKIP if precision is None else precision.value
            for i, precision in enumerate(draft.sublayers)
        }
        values[_HEAD] = draft.precision.head.value
        values[_EXPERTS] = draft.experts
        kind = draft.policy.kind
        values[_POLICY] = (kind if kind in self.policies else self.policies[0]).value
        values[_LENGTH] = _nearest(draft.policy.max_draft_tokens, self.draft_lengths)
        values[_THRESHOLD] = _nearest(draft.policy.exit_threshold, self.exit_thresholds)
        return {name: self._parameter(values[name], choices) for name, choices in self.choices.items()}

    def _value(self, parameter: Any, choices: tuple[Any, ...]) -> Any:
        return choices[min(int(parameter * len(choices)), len(choices) - 1)] if self.as_reals else parameter

    def _parameter(self, value: Any, choices: tuple[Any, ...]) -> Any:
        """The middle of a choice's part of the reals, or the choice itself."""
        return (choices.index(value) + 0.5) / len(choices) if self.as_reals else value


def sublayer_parameter(index: int) -> str:
    """The name of the parameter for sub-layer ``index``: ``attn_3`` or ``mlp_3``."""
    return str(SubLayerId.of(index)).replace(" ", "_")


def _nearest(value: float, choices: Sequence[float]) -> float:
    return min(choices, key=lambda choice: abs(choice - value))


def _chosen(value: str | None, kept: Precision | None) -> Precision | None:
    """What a parameter says of a sub-layer; without one it stays as in the base."""
    if value is None:
        return kept
    return None if value == _SKIP else Precision(value)

"""Drafts as parameters of an Optuna trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from selfspec_tune.draft import AcceptancePrior, Draft, PolicyKind, Precision
from selfspec_tune.search.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS, policies, with_prior
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.skip_set import sublayer_name

_SKIP, _HEAD, _POLICY, _LENGTH, _THRESHOLD = "skip", "head", "policy", "max_draft_tokens", "exit_threshold"
_HAS_THRESHOLD = frozenset({PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE})


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
        draft = replace(base, policy=with_prior(policy, self.prior)).with_sublayers(sublayers)
        return self.space.fitted(draft.with_head(Precision(values.get(_HEAD, base.precision.head))))

    def parameters(self, draft: Draft) -> dict[str, Any]:
        """The inverse of `draft`; a length or threshold that is no choice becomes the nearest, a policy the first."""
        values: dict[str, Any] = {
            sublayer_parameter(i): _SKIP if precision is None else precision.value
            for i, precision in enumerate(draft.sublayers)
        }
        values[_HEAD] = draft.precision.head.value
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
    return sublayer_name(index).replace(" ", "_")


def _nearest(value: float, choices: Sequence[float]) -> float:
    return min(choices, key=lambda choice: abs(choice - value))


def _chosen(value: str | None, kept: Precision | None) -> Precision | None:
    """What a parameter says of a sub-layer; without one it stays as in the base."""
    if value is None:
        return kept
    return None if value == _SKIP else Precision(value)

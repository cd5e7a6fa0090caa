"""Routers of mixtures: to which experts a token goes, and with which weights."""

from __future__ import annotations

import torch
from torch import Tensor

from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans.mlp import RouterPlan, Score


class Router:
    """Scores every expert and chooses the best; of equal scores the first. What it does to a token is that token's.

    ``stored``: its linear layer with the model's own tensors; ``choice_bias`` [experts] in float32.
    """

    def __init__(self, plan: RouterPlan, bound: BoundModel, layer: int) -> None:
        weight = bound.tensor(plan.weight, layer)
        bias = None if plan.bias is None else bound.tensor(plan.bias, layer)
        choice_bias = None if plan.choice_bias is None else bound.tensor(plan.choice_bias, layer)
        self.plan = plan
        self.stored = Dense(weight, bias)
        self.choice_bias = None if choice_bias is None else choice_bias.flatten().float()
        self._linear = self.stored
        if plan.is_float32:  # widened once, not at every pass
            self._linear = Dense(weight.float(), None if bias is None else bias.float())

    def __call__(self, hidden: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
        """Of hidden [tokens, width] the ``chosen`` best experts of each, the best first, and their weights in float32.

        Both are [tokens, chosen].
        """
        plan = self.plan
        logits = self._logits(hidden)
        scores = logits if plan.is_chosen_first else _scores(logits, plan.score)
        experts = self._best(scores, chosen)
        weights = scores.gather(-1, experts)
        if plan.is_chosen_first:
            weights = _scores(weights, plan.score)
        if plan.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + plan.sum_epsilon).clamp(min=plan.least_sum)
        return experts, weights * plan.scale

    def _logits(self, hidden: Tensor) -> Tensor:
        """Float32 [tokens, experts]."""
        return self._linear(hidden.to(self._linear.weight.dtype)).float()

    def _best(self, scores: Tensor, chosen: int) -> Tensor:
        """The experts [tokens, chosen] with the highest of ``scores`` plus bias, within the best groups."""
        plan = self.plan
        told = scores if self.choice_bias is None else scores + self.choice_bias
        if plan.groups > plan.kept_groups:
            grouped = told.unflatten(-1, (plan.groups, -1))
            ranks = grouped.topk(2, -1).values.sum(-1)
            kept = torch.zeros_like(ranks, dtype=torch.bool).scatter_(-1, _order(ranks)[:, : plan.kept_groups], True)
            told = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        return _order(told)[:, :chosen]


def _scores(logits: Tensor, score: Score) -> Tensor:
    return logits.softmax(-1) if score is Score.SOFTMAX else logits.sigmoid()


def _order(values: Tensor) -> Tensor:
    """Places along the last dimension by falling value, of equal ones the first before the others."""
    return values.sort(stable=True, dim=-1, descending=True).indices

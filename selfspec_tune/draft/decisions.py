"""Draft policies at work: those that follow a rule alone, and a fresh state of any for each generation."""

from __future__ import annotations

from collections.abc import Sequence

from selfspec_tune.draft.cost_aware import CostAwareState
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.policy import PLAIN, DraftPolicy, Plan, PolicyKind, PolicyState
from selfspec_tune.draft.rounds import Round, Source
from selfspec_tune.draft.source import DraftSource

# What a shorter match found is mostly wrong: where the model drafts as well, its passes try it.
_LEAST_MATCH = 2
_TAKEN_PER_MATCHED = 4  # tokens for each one that matched


class RuleState:
    """Takes what a source found, more of it the longer the match; else drafts with the model by the policy's rule."""

    def __init__(self, policy: DraftPolicy, *, model_drafts: bool = True) -> None:
        self._policy = policy
        self._model_drafts = model_drafts
        self.needs_probability = policy.needs_probability
        self.uses_lead = False
        self.threshold = policy.exit_threshold
        self.acceptance = 0.0

    def begin(self, room: int, num_found: int = 0, match_length: int = 0, source: str = Source.PLAIN) -> Plan:
        if match_length < _LEAST_MATCH and self._model_drafts:
            num_found = 0
        if room < 1 or (num_found < 1 and not self._model_drafts):
            return PLAIN
        # However high an adaptive threshold has climbed (it is not clamped), one token is drafted: without it there
        # would be nothing to bring the threshold down again.
        if num_found:
            return Plan(source, min(room, num_found, _TAKEN_PER_MATCHED * match_length))
        return Plan(Source.MODEL, min(room, self._policy.max_draft_tokens))

    def wants_more(self, num_drafted: int, probability: float, num_ahead: int = 0) -> bool:
        if num_drafted >= self._policy.max_draft_tokens:
            return False
        return self._policy.kind is PolicyKind.FIXED or probability >= self.threshold

    def num_guesses(self, num_found: int, match_length: int, source: str = Source.PLAIN) -> int:
        return min(num_found, max(2 * match_length - 1, 0))

    def update(self, round_: Round, agreed: int = 0) -> None:
        """Move an adaptive threshold; what a source found says nothing about it."""
        policy, is_by_model = self._policy, round_.source in (None, Source.MODEL)
        if policy.kind is not PolicyKind.ADAPTIVE or round_.num_drafted == 0 or not is_by_model:
            return
        momentum = policy.acceptance_momentum
        self.acceptance = momentum * self.acceptance + (1 - momentum) * round_.num_accepted / round_.num_drafted
        if self.acceptance < policy.target_acceptance:
            proposal = self.threshold + policy.step
        elif round_.num_drafted >= policy.max_draft_tokens:
            proposal = self.threshold
        else:
            proposal = self.threshold - policy.step
        momentum = policy.threshold_momentum
        self.threshold = momentum * self.threshold + (1 - momentum) * proposal


def fresh_state(
    policy: DraftPolicy,
    costs: StepCosts | None = None,
    *,
    sources: Sequence[DraftSource] = (),
    model_drafts: bool = True,
) -> PolicyState:
    """The state of ``policy`` at the beginning of a generation; what else there is to draft with as in `Draft`.

    Raises ValueError for a cost-aware policy without ``costs``.
    """
    if policy.kind is not PolicyKind.COST_AWARE:
        return RuleState(policy, model_drafts=model_drafts)
    if costs is None:
        raise ValueError("a cost-aware policy needs the step costs of its draft: pass costs=Workload.step_costs(draft)")
    return CostAwareState(policy, costs, sources=sources, model_drafts=model_drafts)

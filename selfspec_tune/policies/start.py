"""A fresh state for each generation."""

from __future__ import annotations

from selfspec_tune.costs import StepCosts
from selfspec_tune.draft import DraftPolicy, NgramLookup, PolicyKind
from selfspec_tune.policies.cost_aware import CostAwareState
from selfspec_tune.policies.rules import RuleState
from selfspec_tune.policies.state import PolicyState


def start(
    policy: DraftPolicy,
    costs: StepCosts | None = None,
    *,
    ngram: NgramLookup | None = None,
    model_drafts: bool = True,
) -> PolicyState:
    """The state of ``policy`` at the beginning of a generation; what else there is to draft with as in `Draft`.

    Raises ValueError for a cost-aware policy without ``costs``.
    """
    if policy.kind is not PolicyKind.COST_AWARE:
        return RuleState(policy, model_drafts=model_drafts)
    if costs is None:
        raise ValueError("a cost-aware policy needs the step costs of its draft: pass costs=Workload.step_costs(draft)")
    return CostAwareState(policy, costs, ngram=ngram, model_drafts=model_drafts)

"""What drafts: the skip set, the precision of what is kept, sources in the context, and when to stop drafting."""

from __future__ import annotations

from selfspec_tune.draft.draft import MOST_EXPERTS, MOST_TOKEN_IDS, Draft, experts_a_token, rescaled
from selfspec_tune.draft.policy import (
    CONFIDENCE_EDGES,
    LONGEST_SEARCHED,
    PLAIN,
    AcceptancePrior,
    DraftPolicy,
    Plan,
    PolicyKind,
    PolicyState,
)
from selfspec_tune.draft.precision import DraftPrecision, Precision
from selfspec_tune.draft.rounds import Certainty, Round, Source
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.source import DraftSource

__all__ = [
    "CONFIDENCE_EDGES",
    "LONGEST_SEARCHED",
    "MOST_EXPERTS",
    "MOST_TOKEN_IDS",
    "PLAIN",
    "AcceptancePrior",
    "Certainty",
    "Draft",
    "DraftPolicy",
    "DraftPrecision",
    "DraftSource",
    "Plan",
    "PolicyKind",
    "PolicyState",
    "Precision",
    "Round",
    "SkipSet",
    "Source",
    "experts_a_token",
    "rescaled",
]

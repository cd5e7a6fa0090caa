"""What drafts: the skip set, the precision of what is kept, lookup in the context, and when to stop drafting."""

from selfspec_tune.draft.draft import MOST_TOKEN_IDS, Draft
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.policy import CONFIDENCE_EDGES, AcceptancePrior, DraftPolicy, PolicyKind
from selfspec_tune.draft.precision import DraftPrecision, Precision
from selfspec_tune.draft.rescale import rescaled
from selfspec_tune.draft.source import Source

__all__ = [
    "CONFIDENCE_EDGES",
    "MOST_TOKEN_IDS",
    "AcceptancePrior",
    "Draft",
    "DraftPolicy",
    "DraftPrecision",
    "NgramLookup",
    "PolicyKind",
    "Precision",
    "Source",
    "rescaled",
]

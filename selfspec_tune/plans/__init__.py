"""What decoders compute, as plain values made from their configurations. Imports no torch."""

from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.claims import Claim, ClaimKind, claims, sublayer_claims
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, LayerPlan
from selfspec_tune.plans.feature import Feature, features
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan
from selfspec_tune.plans.norm import NormPlan
from selfspec_tune.plans.registry import plan_of

__all__ = [
    "AttentionPlan",
    "BlockOrder",
    "Claim",
    "ClaimKind",
    "DecoderPlan",
    "ExpertsPlan",
    "Feature",
    "LayerPlan",
    "MlpPlan",
    "NormPlan",
    "claims",
    "features",
    "plan_of",
    "sublayer_claims",
]

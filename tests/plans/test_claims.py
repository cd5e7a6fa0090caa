"""Who owns which tensors."""

from __future__ import annotations

from transformers import AutoConfig

from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.plans import claims, plan_of, sublayer_claims
from tests.families import FAMILIES


def test_the_norm_that_both_sublayers_of_a_layer_read_belongs_to_both_and_is_claimed_once() -> None:
    plan = plan_of(AutoConfig.for_model(**FAMILIES["phi"].config).to_dict())
    attention, mlp = SubLayerId.of(2), SubLayerId.of(3)
    (norm,) = (claim for claim in claims(plan) if claim.path == "model.layers.1.input_layernorm")
    assert (norm.owner, norm.other) == (attention, mlp)
    assert all(norm in sublayer_claims(plan, sublayer) for sublayer in (attention, mlp))


def test_norms_of_their_own_belong_to_one_sublayer() -> None:
    plan = plan_of(AutoConfig.for_model(**FAMILIES["gpt_neox"].config).to_dict())
    assert {claim.other for claim in claims(plan)} == {None}

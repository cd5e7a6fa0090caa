"""What drafts, as values: precisions, lookups, policies, and their forms in text and in files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.draft import (
    CONFIDENCE_EDGES,
    AcceptancePrior,
    Draft,
    DraftPolicy,
    DraftPrecision,
    PolicyKind,
    Precision,
)
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.decisions import fresh_state
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.results import DraftSettings

LAYERS = 4
SAME, INT8, INT4 = Precision
NUM_BINS = len(CONFIDENCE_EDGES) + 1

PRECISIONS = st.builds(
    DraftPrecision,
    st.one_of(st.just(()), st.tuples(*[st.sampled_from(Precision)] * (2 * LAYERS))),
    st.sampled_from(Precision),
)
SHARES = st.floats(0, 1)
POLICIES = st.builds(
    DraftPolicy,
    st.sampled_from(PolicyKind),
    st.integers(1, 20),
    SHARES,
    step=st.sampled_from([0.01, 0.02]),
    max_loss=st.floats(0, 0.5),
    credit=st.floats(0, 4),
    prior=st.one_of(st.none(), st.builds(AcceptancePrior, SHARES, st.tuples(*[SHARES] * NUM_BINS), st.booleans())),
)
LOOKUPS = st.builds(lambda least, more, most: NgramLookup(least + more, least, most), *[st.integers(1, 9)] * 3)
DRAFTS = st.builds(
    lambda flags, policy, precision, vocabulary, sources, alone, experts: Draft(
        SkipSet.from_flags(flags), policy, precision, vocabulary, sources, not sources or not alone, experts
    ),
    st.tuples(*[st.booleans()] * (2 * LAYERS)),
    POLICIES,
    PRECISIONS,
    st.one_of(st.none(), st.integers(1, 99)),
    st.one_of(st.just(()), st.tuples(LOOKUPS)),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 99)),
)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("same", DraftPrecision()),
        ("int4", DraftPrecision((INT4,) * 8)),
        ("INT4 head int8", DraftPrecision((INT4,) * 8, INT8)),
        ("head int8", DraftPrecision((), INT8)),
        (
            "int8 attn 0-1 · mlp 2; int4 attn 3; head int8",
            DraftPrecision((INT8, SAME) * 2 + (SAME, INT8, INT4, SAME), INT8),
        ),
        ("int4 mlp 0; int8 mlp 1-3", DraftPrecision((SAME, INT4) + (SAME, INT8) * 3)),
    ],
)
def test_precisions_are_read(text: str, precision: DraftPrecision) -> None:
    assert DraftPrecision.parse(text, LAYERS) == precision


@given(PRECISIONS)
def test_a_precision_survives_its_text_and_its_file_form(precision: DraftPrecision) -> None:
    assert DraftPrecision.parse(str(precision), LAYERS) == precision
    assert DraftPrecision.from_json(json.loads(json.dumps(precision.to_json())), LAYERS) == precision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read the draft precision ''"),
        ("int2", "'int2' in the draft precision 'int2' is not same, int8 or int4; expected a form like 'int4'"),
        ("head float8", "'float8' in the draft precision"),
        ("int4 attn 9", "has 4 layers"),
        ("int4 heads 2", "Cannot read the layers"),
        ("int4 attn 1; int8 attn 0-2", "names attn 1 twice"),
        ("int4; int8 mlp 0", "names mlp 0 twice"),
        ("int4 head int8; head int4", "names the head twice"),
        ("int4;", "Cannot read the draft precision"),
    ],
)
def test_what_is_no_precision_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DraftPrecision.parse(text, LAYERS)


@pytest.mark.parametrize("value", [3, ["int4"], {"int2": {}}, {"head": "bf16"}, {"int4": {"mlp": [7]}}, "int3"])
def test_a_file_that_holds_no_precision_is_refused(value: Any) -> None:
    with pytest.raises(UsageError):
        DraftPrecision.from_json(value, LAYERS)


def test_a_precision_names_that_of_each_sub_layer() -> None:
    precision = DraftPrecision.parse("int4 attn 1", LAYERS)
    assert [precision.of(index) for index in range(4)] == [SAME, SAME, INT4, SAME]
    assert DraftPrecision().of(7) is SAME
    assert DraftPrecision((SAME,) * 8) == DraftPrecision()
    assert DraftPrecision().is_same
    assert not DraftPrecision((), INT8).is_same
    assert DraftPrecision.uniform(2, INT8, INT4) == DraftPrecision((INT8,) * 4, INT4)


def test_a_precision_must_fit_the_model() -> None:
    with pytest.raises(UsageError, match="3 sub-layers; expected two for each layer"):
        DraftPrecision((INT4,) * 3)
    with pytest.raises(UsageError, match="for 2 layers; the model has 4"):
        Draft(SkipSet.empty(4), precision=DraftPrecision((INT4,) * 4))


@pytest.mark.parametrize("values", [(2, 3, 4), (3, 0, 4), (3, 1, 0)])
def test_a_lookup_that_could_find_nothing_is_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="expected"):
        NgramLookup(*values)


@pytest.mark.parametrize(
    "settings",
    [{"max_loss": 1.0}, {"max_loss": -0.1}, {"credit": -1.0}, {"exit_threshold": 2.0}, {"max_draft_tokens": 0}],
)
def test_a_policy_refuses_settings_that_mean_nothing(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        DraftPolicy(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mean", "rates"), [(0.5, ()), (1.5, (0.5,) * NUM_BINS), (0.5, (2.0,) * NUM_BINS)])
def test_a_prior_is_made_of_probabilities(mean: float, rates: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="all from 0 to 1"):
        AcceptancePrior(mean, rates)


def test_a_prior_of_before_leads_were_known_is_of_confidences() -> None:
    rates = [0.5] * NUM_BINS
    old = AcceptancePrior.from_dict({"mean": 0.5, "by_confidence": rates})
    new = AcceptancePrior.from_dict({"mean": 0.5, "by_lead": rates})
    assert (old.by_lead, new.by_lead) == (False, True)
    assert (list(old.to_dict()), list(new.to_dict())) == (["mean", "by_confidence"], ["mean", "by_lead"])
    policies = [DraftPolicy(PolicyKind.COST_AWARE, prior=prior) for prior in (old, new)]
    costs = StepCosts(1.0, 0.3, (1.0, 1.1))
    assert len({str(policy) for policy in policies}) == 2
    assert [fresh_state(policy, costs).uses_lead for policy in policies] == [False, True]
    assert fresh_state(DraftPolicy(PolicyKind.COST_AWARE), costs).uses_lead
    assert not fresh_state(DraftPolicy(PolicyKind.THRESHOLD)).uses_lead
    with pytest.raises(UsageError, match="both by_confidence and by_lead"):
        AcceptancePrior.from_dict({"mean": 0.5, "by_confidence": rates, "by_lead": rates})


def test_a_draft_from_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a lookup nor the model"):
        Draft(SkipSet.empty(2), model_drafts=False)


@given(DRAFTS)
def test_a_draft_survives_its_file_form(draft: Draft) -> None:
    written = json.loads(json.dumps(draft.to_dict()))
    assert Draft.from_dict(draft.skip_set, written) == draft
    settings = DraftSettings.model_validate(written)
    assert Draft.from_dict(draft.skip_set, settings.model_dump()) == draft


def test_a_file_of_before_lookups_and_precisions_is_read() -> None:
    old = {
        "policy": "threshold",
        "max_draft_tokens": 10,
        "exit_threshold": 0.9,
        "precision": "same",
        "vocabulary": 37984,
    }
    draft = Draft.from_dict(SkipSet.empty(2), old)
    assert draft == Draft(SkipSet.empty(2), DraftPolicy(PolicyKind.THRESHOLD, 10, 0.9), vocabulary=37984)
    assert DraftSettings.model_validate(old).sources == ()
    assert "experts" not in draft.to_dict()  # as in files of before mixtures had any to choose
    assert "experts" not in DraftSettings.model_validate(old).model_dump()


@pytest.mark.parametrize("experts", [0, -1, 1.5, True, "2"])
def test_a_number_of_experts_is_a_whole_one(experts: Any) -> None:
    with pytest.raises(UsageError, match=r"experts is .*; expected a whole number from 1"):
        Draft(SkipSet.empty(2), experts=experts)


@given(DRAFTS, DRAFTS)
def test_a_description_tells_any_two_drafts_apart(first: Draft, second: Draft) -> None:
    assert (first.describe() == second.describe()) == (first == second)
    assert "\n" not in first.describe()


@given(DRAFTS, st.data())
def test_a_description_shows_every_single_change(draft: Draft, data: st.DataObject) -> None:
    other = data.draw(DRAFTS)
    for name in ("skip_set", "policy", "precision", "vocabulary", "experts"):
        changed = replace(draft, **{name: getattr(other, name)})
        assert (changed.describe() == draft.describe()) == (changed == draft)


def test_a_description_reads_well() -> None:
    draft = Draft(
        SkipSet(4, (1,), (2,)),
        DraftPolicy(PolicyKind.COST_AWARE, 12),
        DraftPrecision.parse("int4 head int8", 4),
        99,
        (NgramLookup(),),
    )
    assert draft.describe() == (
        "attn 1 · mlp 2 (cost-aware 12, vocabulary 99, precision int4 head int8, n-gram 1-8, 24 tokens, 8 in drafts)"
    )
    alone = Draft(SkipSet.empty(4), sources=(NgramLookup(3, 1, 8),), model_drafts=False)
    assert alone.describe() == "none (threshold 6, exit 0.6, n-gram 1-3, 8 tokens alone)"

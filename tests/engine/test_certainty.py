"""How sure a draft is of its tokens: the same numbers by every runner, and a record of them in every round."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Certainty, Draft, DraftPolicy, PolicyKind, Source
from selfspec_tune.draft.decisions import RuleState
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import MOST_MARGIN, UNSURE
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, self_speculative
from selfspec_tune.engine.drafting import Drafter
from selfspec_tune.engine.runner import Want, as_scores, most_probable, prefill
from selfspec_tune.engine.runners.penalty import penalised
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.engine.sampling import certainty_of
from selfspec_tune.models import LoadedModel
from tests.covering import cover
from tests.engine_kit import RUNNERS, STEPS, TableRunner, certainty_by, chain, every_policy, llama, load, prompt_tokens

SKIP = SkipSet(3, (1,), (2,))
FLAT, PEAKED, VERY_PEAKED = 1.0, 40.0, 400.0  # what the head's weights are multiplied with
VOCABULARY = 601  # several blocks of the native head, and no multiple of its rows
SURE = 4.0


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(llama(tmp_path_factory.mktemp("model"), vocab_size=VOCABULARY, tie_word_embeddings=False))


@pytest.fixture
def peaked(request: pytest.FixtureRequest, loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The model whose logits are so many times as far apart."""
    weight: Tensor = loaded.model.get_output_embeddings().weight.data
    before = weight.clone()
    weight.mul_(request.param)
    yield loaded
    weight.copy_(before)


@cover(
    indirect=["peaked"],
    peaked=[FLAT, PEAKED, VERY_PEAKED],
    name=list(RUNNERS),
    vocabulary=[None, 555, 16, 2, 1],
    count=[1, 5, 33],
)
def test_every_runner_says_how_sure_the_draft_is(
    peaked: LoadedModel, name: str, vocabulary: int | None, count: int
) -> None:
    runner, tokens = RUNNERS[name](peaked), prompt_tokens(count, seed=1)
    runner.reserve(100)
    runner.set_draft(Draft(SKIP, DraftPolicy(), vocabulary=vocabulary))
    prefill(runner, prompt_tokens(9))
    logits = runner.forward(tokens, is_draft=True).logits
    runner.rewind(9)
    found = runner.forward(tokens, is_draft=True, want=Want.CERTAINTIES)
    assert found.tokens == logits.argmax(-1).tolist()
    assert found.certainties == [pytest.approx(certainty_by(row), rel=1e-3, abs=1e-5) for row in logits]
    runner.rewind(9)
    assert runner.forward(tokens, is_draft=True, want=Want.TOKENS).certainties == []


@pytest.mark.parametrize("name", ["fast", *(["native"] if "native" in RUNNERS else [])])
@pytest.mark.parametrize("peaked", [PEAKED], indirect=True)
def test_runners_around_a_runner_say_it_too(peaked: LoadedModel, name: str) -> None:
    runner: Runner = StandaloneRunner.of(RUNNERS[name](peaked), peaked)
    runner.reserve(100)
    runner.set_draft(Draft(SKIP, DraftPolicy()))
    for around in (runner, penalised(runner, 1.3)):
        around.rewind(0)
        prefill(around, prompt_tokens(9))
        logits = around.forward([5, 6, 7], is_draft=True).logits
        around.rewind(9)
        found = around.forward([5, 6, 7], is_draft=True, want=Want.CERTAINTIES)
        assert found.certainties == [pytest.approx(certainty_by(row), rel=1e-3, abs=1e-5) for row in logits]
        around.rewind(9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_and_tokens_that_are_ruled_out_have_numbers(dtype: torch.dtype) -> None:
    inf = math.inf
    logits = torch.tensor([[3.0, 3.0, -inf], [-inf, 200.0, -inf], [1.0, 0.0, -300.0]], dtype=dtype)
    found = as_scores(most_probable(logits, Want.CERTAINTIES).tolist(), Want.CERTAINTIES)
    assert found.tokens == [0, 1, 0]
    odds = 1 / (1 + math.e)
    entropy = -odds * math.log(odds) - (1 - odds) * math.log(1 - odds)
    expected = [(0.5, 0.0, math.log(2)), (1.0, MOST_MARGIN, 0.0), (1 - odds, 1.0, entropy)]
    assert found.certainties == [pytest.approx(each, abs=1e-6) for each in expected]


@pytest.mark.parametrize(
    ("sampler", "left"),
    [
        (Sampler(1.0), [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
        (Sampler(0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (Sampler(1.0, top_k=2), [2 / 3, 1 / 3, 0.0, 0.0]),
        (Sampler(1.0, top_k=1), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_of_a_token_that_is_drawn_by_what_the_sampler_leaves(sampler: Sampler, left: list[float]) -> None:
    """The token drawn is the second most probable one."""
    distribution = sampler.probabilities(torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log())
    entropy = -sum(share * math.log(share) for share in left if share)
    margin = math.log(left[0] / left[1]) if left[1] else MOST_MARGIN
    assert certainty_of(distribution, 1) == pytest.approx((left[1], margin, entropy), abs=1e-6)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.7, top_p=0.9, seed=1)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", every_policy(4, 0.3), ids=lambda policy: policy.kind.value)
def test_every_round_says_how_sure_the_draft_was_of_each_token_of_the_models(
    policy: DraftPolicy, sampler: Sampler
) -> None:
    """Guesses that passes tried are the model's positions like any other; looked-up tokens have a match instead."""
    lookup = NgramLookup(2, 1, 4, 2)
    runner = TableRunner(chain(8, SURE), chain(8, SURE))
    made = self_speculative(
        runner, [0, 1], Limits(60), sampler, Draft(SkipSet.empty(1), policy, sources=(lookup,)), STEPS
    )
    assert {Source.MODEL, "ngram"} <= {one.source for one in made.rounds}
    probabilities = (
        sampler.probabilities(chain(8, SURE)[0, 0]) if not sampler.greedy else chain(8, SURE)[0, 0].softmax(-1)
    )
    known = [certainty_of(probabilities, token) for token in range(8)]
    for one in made.rounds:
        by_model = one.source == Source.MODEL
        assert len(one.certainties) == (one.num_drafted if by_model else 0)
        assert (one.match_length >= 1) == (one.source == "ngram")
        for certainty in one.certainties:
            assert certainty == certainty.rounded
            assert any(certainty == pytest.approx(each, abs=0.006) for each in known)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("uses_lead", [False, True])
def test_a_policy_goes_by_leads_where_it_asks_for_them_and_the_draft_takes_the_likeliest(
    uses_lead: bool, samples: bool
) -> None:
    class Noting(RuleState):
        def wants_more(self, num_drafted: int, probability: float, num_ahead: int = 0) -> bool:
            seen.append(probability)
            return super().wants_more(num_drafted, probability, num_ahead)

    seen: list[float] = []
    state = Noting(DraftPolicy(PolicyKind.THRESHOLD, 3, 0.0))
    state.uses_lead = uses_lead
    runner = TableRunner(chain(8, SURE), chain(8, SURE))
    prefill(runner, [0, 1])
    drafted = Drafter(runner, [], state, Sampler(1.0) if samples else None, lambda token: False, [0, 1]).draft(1, 9)
    leads = [certainty.lead for certainty in drafted.certainties]
    assert leads == pytest.approx([1 / (1 + math.exp(-SURE))] * 3)
    assert seen == (leads if uses_lead and not samples else [each.confidence for each in drafted.certainties])


def test_a_draft_that_overflows_is_not_sure_of_anything() -> None:
    runner = TableRunner(chain(8, SURE), torch.full((8, 8, 8), math.nan))
    made = self_speculative(
        runner, [0, 1], Limits(9), Sampler(), Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 2))
    )
    certainties = [certainty for one in made.rounds for certainty in one.certainties]
    assert set(certainties) == {UNSURE} == {Certainty(0.0, 0.0, 0.0)}

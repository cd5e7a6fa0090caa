"""Speculative sampling against the exact joint distribution of small targets, enumerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from math import inf

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from selfspec_tune.draft import Draft, DraftPolicy, NgramLookup
from selfspec_tune.engine import Limits, Runner, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.sampling import accept
from selfspec_tune.models import LoadedModel
from selfspec_tune.skip_set import SkipSet
from tests import kit
from tests.engine_kit import RUNNERS, STEPS, TableRunner, every_policy, load, policies, prompt_tokens

VOCABULARY = 5
NUM_TOKENS = 4  # counted jointly; one more is generated, so that a draft may be three tokens long
PROMPT = [3, 4]
POLICIES = policies(max_draft_tokens=3, exit_threshold=0.3)
EVERY_POLICY = every_policy(max_draft_tokens=3, exit_threshold=0.3)
# In a vocabulary of five the last token has often been there before; the lookup alone, and with the model after it.
LOOKUP = NgramLookup(max_match=2, min_match=1, max_tokens=3)
COMBINED: dict[str, tuple[NgramLookup | None, bool]] = {
    "lookup": (LOOKUP, False),
    "lookup, then model": (NgramLookup(2, 2, 2), True),
}
# A right rule fails one test in a hundred thousand; a broken one is to be far beyond.
ACCEPTABLE, CAUGHT = 1e-5, 1e-9

Joint = dict[tuple[int, ...], float]


def _joint(next_logits: Callable[[tuple[int, ...]], Tensor], sampler: Sampler, eos: frozenset[int]) -> Joint:
    """Exact probability of every answer's first tokens, given the target's logits after ``tokens``."""
    ended: Joint = {}
    open_: Joint = {(): 1.0}
    for _ in range(NUM_TOKENS):
        grown: Joint = {}
        for tokens, probability in open_.items():
            for token, share in enumerate(sampler.probabilities(next_logits(tokens)).tolist()):
                if share > 0:
                    where = ended if token in eos else grown
                    where[(*tokens, token)] = probability * share
        open_ = grown
    return ended | open_


def _p_value(counts: Counter[tuple[int, ...]], joint: Joint) -> float:
    """Pearson's chi-square, cells of similar probability pooled until each expects eight answers."""
    total = counts.total()
    if any(tokens not in joint for tokens in counts):
        return 0.0
    bins: list[tuple[float, int]] = []
    expected, observed = 0.0, 0
    for tokens in sorted(joint, key=lambda tokens: joint[tokens]):
        expected, observed = expected + total * joint[tokens], observed + counts[tokens]
        if expected >= 8:
            bins.append((expected, observed))
            expected, observed = 0.0, 0
    bins[-1] = (bins[-1][0] + expected, bins[-1][1] + observed)
    statistic = sum((observed - expected) ** 2 / expected for expected, observed in bins)
    return float(chi2.sf(statistic, len(bins) - 1))


def _answers(
    runner: Runner,
    sampler: Sampler,
    draft: Draft,
    count: int,
    eos: frozenset[int] = frozenset(),
    prompt: Sequence[int] = PROMPT,
) -> Counter[tuple[int, ...]]:
    limits = Limits(NUM_TOKENS + 1, eos)
    runs = (self_speculative(runner, prompt, limits, sampler, draft, STEPS) for _ in range(count))
    return Counter(tuple(run.tokens[:NUM_TOKENS]) for run in runs)


# -- logits read off tables --------------------------------------------------------------------------------------

_NOISE = torch.Generator().manual_seed(11)
TARGET = 1.2 * torch.randn((VOCABULARY,) * 3, generator=_NOISE)
GUESS = TARGET + 1.2 * torch.randn((VOCABULARY,) * 3, generator=_NOISE)


def _table_logits(tokens: tuple[int, ...]) -> Tensor:
    before, last = [*PROMPT, *tokens][-2:]
    return TARGET[before, last]


def _sampler(name: str) -> Sampler:
    """Fresh, with a fixed seed."""
    settings: dict[str, tuple[float, int, float]] = {
        "plain": (1.0, 0, 1.0),
        "cool": (0.6, 0, 1.0),
        "top-k": (1.0, 3, 1.0),
        "top-p": (1.0, 0, 0.75),
        "all three": (1.4, 4, 0.9),
    }
    temperature, top_k, top_p = settings[name]
    return Sampler(temperature, top_k, top_p, seed=5)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize(
    ("name", "vocabulary", "eos"),
    [
        ("plain", None, frozenset()),
        ("plain", 3, frozenset({1, 4})),
        ("cool", None, frozenset()),
        ("top-k", 4, frozenset()),
        ("top-p", None, frozenset({2})),
        ("all three", None, frozenset()),
        ("all three", 2, frozenset()),
    ],
)
def test_speculative_answers_follow_the_targets_joint_distribution(
    name: str, vocabulary: int | None, eos: frozenset[int], policy: DraftPolicy
) -> None:
    sampler = _sampler(name)
    draft = Draft(SkipSet.empty(1), policy, vocabulary=vocabulary)
    counts = _answers(TableRunner(TARGET, GUESS), sampler, draft, 1500, eos)
    assert _p_value(counts, _joint(_table_logits, sampler, eos)) > ACCEPTABLE


# A prompt whose every token occurs in it more than once, so that most rounds begin with something found.
REPETITIVE = [0, 1, 3, 4, 2, 0, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("sources", COMBINED)
@pytest.mark.parametrize(
    ("name", "vocabulary", "eos"),
    [
        ("plain", None, frozenset()),
        ("plain", 2, frozenset({1, 4})),
        ("top-k", 4, frozenset()),
        ("all three", 3, frozenset({2})),
    ],
)
def test_looked_up_tokens_leave_the_targets_joint_distribution_as_it_is(
    name: str, vocabulary: int | None, eos: frozenset[int], sources: str, policy: DraftPolicy
) -> None:
    sampler, (ngram, model_drafts) = _sampler(name), COMBINED[sources]
    draft = Draft(SkipSet.empty(1), policy, vocabulary=vocabulary, ngram=ngram, model_drafts=model_drafts)
    counts = _answers(TableRunner(TARGET, GUESS), sampler, draft, 1200, eos, REPETITIVE)
    assert _p_value(counts, _joint(_table_logits, sampler, eos)) > ACCEPTABLE


def test_a_cost_aware_model_draft_follows_the_targets_joint_distribution() -> None:
    sampler, draft = _sampler("plain"), Draft(SkipSet.empty(1), EVERY_POLICY[-1])
    runner = TableRunner(TARGET, GUESS)
    counts = _answers(runner, sampler, draft, 1500)
    assert _p_value(counts, _joint(_table_logits, sampler, frozenset())) > ACCEPTABLE
    assert len(runner.verified) > 750  # it did draft


def test_plain_answers_follow_the_same_distribution() -> None:
    sampler, runner = _sampler("all three"), TableRunner(TARGET)
    runs = (autoregressive(runner, PROMPT, Limits(NUM_TOKENS), sampler) for _ in range(1200))
    counts = Counter(tuple(run.tokens) for run in runs)
    assert _p_value(counts, _joint(_table_logits, sampler, frozenset())) > ACCEPTABLE


def _accept_everything(
    sampler: Sampler, drafted: list[int], draft_probabilities: list[Tensor | None], target_probabilities: Tensor
) -> tuple[int, int]:
    return len(drafted), sampler.draw(target_probabilities[len(drafted)])


def _resample_from_target(
    sampler: Sampler, drafted: list[int], draft_probabilities: list[Tensor | None], target_probabilities: Tensor
) -> tuple[int, int]:
    """The right rule but for the residual."""
    num_accepted, following = accept(sampler, drafted, draft_probabilities, target_probabilities)
    if num_accepted == len(drafted):
        return num_accepted, following
    return num_accepted, sampler.draw(target_probabilities[num_accepted])


def _accept_by_target_alone(
    sampler: Sampler, drafted: list[int], draft_probabilities: list[Tensor | None], target_probabilities: Tensor
) -> tuple[int, int]:
    """Accepts with the target's probability instead of its ratio to the draft's."""
    certain: list[Tensor | None] = [torch.ones_like(p) for p in draft_probabilities if p is not None]
    num_accepted, following = accept(sampler, drafted, certain, target_probabilities)
    if num_accepted == len(drafted):
        return num_accepted, following
    return num_accepted, sampler.draw(target_probabilities[num_accepted])


BROKEN = [_accept_everything, _resample_from_target, _accept_by_target_alone]


@pytest.fixture(params=BROKEN, ids=lambda rule: rule.__name__.strip("_"))
def broken_rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", request.param)


@pytest.mark.usefixtures("broken_rule")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_a_broken_acceptance_rule_is_caught(policy: DraftPolicy) -> None:
    sampler = _sampler("plain")
    counts = _answers(TableRunner(TARGET, GUESS), sampler, Draft(SkipSet.empty(1), policy), 1200)
    assert _p_value(counts, _joint(_table_logits, sampler, frozenset())) < CAUGHT


@pytest.mark.parametrize("rule", [_accept_everything, _resample_from_target], ids=["everything", "from target"])
@pytest.mark.parametrize("policy", EVERY_POLICY, ids=lambda policy: policy.kind)
def test_a_broken_rule_for_looked_up_tokens_is_caught(
    policy: DraftPolicy, rule: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", rule)
    sampler = _sampler("plain")
    draft = Draft(SkipSet.empty(1), policy, ngram=LOOKUP, model_drafts=False)
    counts = _answers(TableRunner(TARGET, GUESS), sampler, draft, 1200, prompt=REPETITIVE)
    assert _p_value(counts, _joint(_table_logits, sampler, frozenset())) < CAUGHT


# -- the real runners --------------------------------------------------------------------------------------------

SKIPPED = SkipSet(2, (1,), (0,))
NUM_ANSWERS = {"fast": 500, "reference": 350, "graphs": 350, "native": 500}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(kit.tiny_llama(tmp_path_factory.mktemp("five-tokens"), layers=2, vocab=VOCABULARY, context=64))


@pytest.fixture(scope="module")
def model_logits(tiny: LoadedModel) -> Callable[[tuple[int, ...]], Tensor]:
    """The model's own logits after ``tokens``, by one forward without a cache: no runner takes part."""

    @cache
    @torch.no_grad()
    def logits(tokens: tuple[int, ...]) -> Tensor:
        output: Tensor = tiny.model(input_ids=torch.tensor([[*PROMPT, *tokens]]), use_cache=False).logits
        return output[0, -1]

    return logits


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("name", RUNNERS)
def test_both_runners_sample_from_the_models_joint_distribution(
    tiny: LoadedModel, model_logits: Callable[[tuple[int, ...]], Tensor], name: str, policy: DraftPolicy
) -> None:
    sampler = Sampler(seed=3, temperature=0.9, top_k=4, top_p=0.95)
    draft = Draft(SKIPPED, policy, vocabulary=4)
    counts = _answers(RUNNERS[name](tiny), sampler, draft, NUM_ANSWERS[name])
    assert _p_value(counts, _joint(model_logits, sampler, frozenset())) > ACCEPTABLE


@pytest.mark.parametrize("policy", [EVERY_POLICY[1], EVERY_POLICY[-1]], ids=lambda policy: policy.kind)
@pytest.mark.parametrize("sources", ["model", *COMBINED])
@pytest.mark.parametrize("name", RUNNERS)
def test_both_runners_sample_right_from_every_source(
    tiny: LoadedModel,
    model_logits: Callable[[tuple[int, ...]], Tensor],
    name: str,
    sources: str,
    policy: DraftPolicy,
) -> None:
    sampler = Sampler(seed=4, temperature=0.9, top_k=4, top_p=0.95)
    ngram, model_drafts = COMBINED.get(sources, (None, True))
    draft = Draft(SKIPPED, policy, vocabulary=4, ngram=ngram, model_drafts=model_drafts)
    counts = _answers(RUNNERS[name](tiny), sampler, draft, NUM_ANSWERS[name])
    assert _p_value(counts, _joint(model_logits, sampler, frozenset())) > ACCEPTABLE


@pytest.mark.parametrize("name", RUNNERS)
def test_as_few_answers_of_the_real_runners_show_a_broken_rule(
    tiny: LoadedModel,
    model_logits: Callable[[tuple[int, ...]], Tensor],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", _accept_everything)
    sampler = Sampler(seed=3, temperature=0.9, top_k=4, top_p=0.95)
    counts = _answers(RUNNERS[name](tiny), sampler, Draft(SKIPPED, POLICIES[0]), NUM_ANSWERS[name])
    assert _p_value(counts, _joint(model_logits, sampler, frozenset())) < CAUGHT


def test_the_same_seed_gives_the_same_answer(tiny: LoadedModel) -> None:
    sampler, draft, runner = Sampler(1.0), Draft(SKIPPED), RUNNERS["fast"](tiny)
    answers = []
    for seed in (1, 2, 1):
        sampler.restart(seed)
        answers.append(self_speculative(runner, PROMPT, Limits(24), sampler, draft).tokens)
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("name", RUNNERS)
def test_sampling_accepts_every_draft_of_an_empty_skip_set(tiny: LoadedModel, name: str) -> None:
    sampler, runner = Sampler(0.8, seed=1), RUNNERS[name](tiny)
    for policy in POLICIES:
        for seed in range(4):
            draft, prompt = Draft(SkipSet.empty(2), policy), prompt_tokens(6, seed, VOCABULARY)
            generation = self_speculative(runner, prompt, Limits(20), sampler, draft)
            assert generation.accepted == generation.drafted
            assert sum(generation.accepted) > 0


# -- from logits to probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 5, 1.0), (1.0, 0, 0.3), (0.7, 20, 0.9), (1.0, 1, 1.0), (1.0, 0, 0.001)],
)
def test_the_processors_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    scores = 3 * torch.randn(40, 50, generator=torch.Generator().manual_seed(2))
    ours = Sampler(temperature, top_k, top_p).probabilities(scores)
    theirs = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    torch.testing.assert_close(ours, theirs.softmax(-1))


def test_one_row_is_processed_like_each_of_many() -> None:
    scores = torch.randn(7, 30, generator=torch.Generator().manual_seed(3))
    sampler = Sampler(0.9, 12, 0.8)
    rows = torch.stack([sampler.probabilities(row) for row in scores])
    torch.testing.assert_close(sampler.probabilities(scores), rows)


def test_half_precision_logits_become_float32_probabilities() -> None:
    scores = torch.randn(30, generator=torch.Generator().manual_seed(4)).bfloat16()
    probabilities = Sampler(1.0).probabilities(scores)
    assert probabilities.dtype == torch.float32
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-6)


def test_only_temperature_zero_is_greedy() -> None:
    assert Sampler().greedy
    assert not Sampler(0.1).greedy


def test_a_token_that_the_target_excludes_is_never_accepted() -> None:
    sampler = Sampler(1.0, seed=0)
    drafted, target = torch.tensor([0.9, 0.1, 0.0]), torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    for _ in range(200):
        num_accepted, following = accept(sampler, [0], [drafted], target)
        assert num_accepted == 0
        assert following in (1, 2)


def test_a_looked_up_token_is_accepted_as_often_as_the_target_draws_it() -> None:
    sampler, target = Sampler(1.0, seed=0), torch.tensor([[0.3, 0.2, 0.5], [0.0, 1.0, 0.0]])
    outcomes = Counter(accept(sampler, [0], [None], target) for _ in range(600))
    assert set(outcomes) == {(1, 1), (0, 1), (0, 2)}
    assert outcomes[1, 1] / 600 == pytest.approx(0.3, abs=0.08)
    assert outcomes[0, 1] / 600 == pytest.approx(0.2, abs=0.08)


def test_a_rejected_draft_is_replaced_from_what_the_target_has_more_of() -> None:
    sampler = Sampler(1.0, seed=0)
    drafted, target = torch.tensor([0.8, 0.2]), torch.tensor([[0.3, 0.2, 0.5], [0.0, 1.0, 0.0]])
    outcomes = Counter(accept(sampler, [0], [drafted], target) for _ in range(400))
    assert set(outcomes) == {(1, 1), (0, 2)}
    assert outcomes[1, 1] / 400 == pytest.approx(0.3 / 0.8, abs=0.1)


def test_rounding_that_leaves_no_residual_falls_back_to_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "uniform", lambda self: inf)
    even = torch.tensor([0.5, 0.5])
    num_accepted, following = accept(Sampler(1.0), [1], [even], torch.stack([even, even]))
    assert num_accepted == 0
    assert following in (0, 1)

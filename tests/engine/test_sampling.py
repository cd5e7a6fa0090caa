"""Speculative sampling against the exact joint distribution of small targets, both enumerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import inf

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.sampling import accept
from tests.covering import cover
from tests.engine_kit import STEPS, TableRunner, every_policy, policies
from tests.enumeration import distribution

POLICIES = policies(max_draft_tokens=3, exit_threshold=0.3)
EVERY_POLICY = every_policy(max_draft_tokens=3, exit_threshold=0.3)
# In so small a vocabulary the last token has often been there before; the lookup alone, and with the model after it.
LOOKUP = NgramLookup(max_match=2, min_match=1, max_tokens=3)
COMBINED: dict[str, tuple[tuple[NgramLookup, ...], bool]] = {
    "lookup": ((LOOKUP,), False),
    "lookup, then model": ((NgramLookup(2, 2, 2),), True),
    "lookup as by default, then model": ((NgramLookup(),), True),
}
# Rounding alone may separate the right rule's distribution from the target's; a broken rule moves answers in ten.
ROUNDING, CAUGHT = 1e-5, 0.02

Joint = dict[tuple[int, ...], float]


def _joint(
    next_logits: Callable[[tuple[int, ...]], Tensor], sampler: Sampler, num_tokens: int, eos: frozenset[int]
) -> Joint:
    """Exact probability of every answer, given the target's logits after ``tokens``."""
    ended: Joint = {}
    open_: Joint = {(): 1.0}
    for _ in range(num_tokens):
        grown: Joint = {}
        for tokens, probability in open_.items():
            for token, share in enumerate(sampler.probabilities(next_logits(tokens)).tolist()):
                if share > 0:
                    where = ended if token in eos else grown
                    where[(*tokens, token)] = probability * share
        open_ = grown
    return ended | open_


def _penalised(logits: Tensor, tokens: Sequence[int], sampler: Sampler) -> Tensor:
    """Logits [vocabulary] after ``tokens`` under the sampler's repetition penalty, by transformers."""
    processor = RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty)
    found: Tensor = processor(torch.tensor([list(tokens)]), logits.float()[None])[0]
    return found


def _answers(runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler, draft: Draft) -> Joint:
    """Exact probability of every speculative answer."""
    return distribution(
        sampler, lambda every: tuple(self_speculative(runner, prompt, limits, every, draft, STEPS).tokens)
    )


def _distance(found: Joint, expected: Joint) -> float:
    """Total variation: the probability that one has and the other has not."""
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-4)
    return sum(abs(found.get(answer, 0.0) - expected.get(answer, 0.0)) for answer in found.keys() | expected) / 2


# -- logits read off tables --------------------------------------------------------------------------------------

_NOISE = torch.Generator().manual_seed(11)
TARGET = 1.2 * torch.randn((4,) * 3, generator=_NOISE)
GUESS = TARGET + 1.2 * torch.randn((4,) * 3, generator=_NOISE)
PROMPT = [1, 2]
# Prompts whose every token occurs more than once, so that most rounds begin with something found.
REPETITIVE = [0, 1, 2, 0, 2, 1, 0, 1, 1, 2]


@dataclass(frozen=True)
class Case:
    """How the tokens of a table's first ``size`` are drawn, and how many; ``vocabulary``: the draft's."""

    sampler: Sampler
    size: int = 3
    num_tokens: int = 4  # of which the first is drawn before anything is drafted
    vocabulary: int | None = None
    eos: frozenset[int] = frozenset()

    def runner(self) -> TableRunner:
        return TableRunner(*(table[: self.size, : self.size, : self.size] for table in (TARGET, GUESS)))

    def limits(self) -> Limits:
        return Limits(self.num_tokens, self.eos)

    def joint(self, prompt: Sequence[int]) -> Joint:
        def logits(tokens: tuple[int, ...]) -> Tensor:
            before, last = [*prompt, *tokens][-2:]
            return _penalised(TARGET[before, last, : self.size], [*prompt, *tokens], self.sampler)

        return _joint(logits, self.sampler, self.num_tokens, self.eos)


PLAIN = Case(Sampler(1.0))
CASES = {
    "plain": PLAIN,
    "plain, few drafted, two ends": Case(Sampler(1.0), vocabulary=2, eos=frozenset({0, 2})),
    "cool": Case(Sampler(0.6)),
    "top-k, long": Case(Sampler(1.0, 2), size=4, num_tokens=5, vocabulary=3),
    "top-p": Case(Sampler(1.0, 0, 0.75), size=4, eos=frozenset({2})),
    "all three": Case(Sampler(1.4, 3, 0.9), size=4),
    "all three, few drafted": Case(Sampler(1.4, 3, 0.9), size=4, vocabulary=2),
    "min-p": Case(Sampler(1.2, min_p=0.3), size=4),
    "penalty": Case(Sampler(1.0, repetition_penalty=1.6), vocabulary=2),
    "all five": Case(Sampler(1.2, 3, 0.9, min_p=0.1, repetition_penalty=0.8), size=4, eos=frozenset({3})),
}


# Each policy takes some of the samplers: test_lossless.py pairs them, on real models.
@pytest.mark.parametrize(("name", "policy"), list(zip(CASES, cycle(POLICIES), strict=False)))
def test_speculative_answers_follow_the_targets_joint_distribution(name: str, policy: DraftPolicy) -> None:
    case = CASES[name]
    draft = Draft(SkipSet.empty(1), policy, vocabulary=case.vocabulary)
    found = _answers(case.runner(), PROMPT, case.limits(), case.sampler, draft)
    assert _distance(found, case.joint(PROMPT)) < ROUNDING


@cover(
    case={name: CASES[name] for name in ("plain", "plain, few drafted, two ends", "top-k, long", "all five")},
    sources=COMBINED,
    policy=EVERY_POLICY,
)
def test_looked_up_tokens_leave_the_targets_joint_distribution_as_it_is(
    case: Case, sources: tuple[tuple[NgramLookup, ...], bool], policy: DraftPolicy
) -> None:
    beside, model_drafts = sources
    draft = Draft(SkipSet.empty(1), policy, vocabulary=case.vocabulary, sources=beside, model_drafts=model_drafts)
    found = _answers(case.runner(), REPETITIVE, case.limits(), case.sampler, draft)
    assert _distance(found, case.joint(REPETITIVE)) < ROUNDING


def test_a_cost_aware_model_draft_follows_the_targets_joint_distribution() -> None:
    runner = PLAIN.runner()
    found = _answers(runner, PROMPT, PLAIN.limits(), PLAIN.sampler, Draft(SkipSet.empty(1), EVERY_POLICY[-1]))
    assert _distance(found, PLAIN.joint(PROMPT)) < ROUNDING
    assert max(len(tokens) for tokens in runner.verified) == 3  # it did draft


def test_plain_answers_follow_the_same_distribution() -> None:
    case = CASES["all five"]
    runner, limits = case.runner(), case.limits()
    found = distribution(case.sampler, lambda every: tuple(autoregressive(runner, PROMPT, limits, every).tokens))
    assert _distance(found, case.joint(PROMPT)) < ROUNDING


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


BROKEN = {
    "everything": _accept_everything,
    "from target": _resample_from_target,
    "by target alone": _accept_by_target_alone,
}


SHORT = Case(Sampler(1.0), num_tokens=3)


@pytest.mark.parametrize("rule", BROKEN)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_a_broken_acceptance_rule_is_caught(policy: DraftPolicy, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", BROKEN[rule])
    found = _answers(SHORT.runner(), PROMPT, SHORT.limits(), SHORT.sampler, Draft(SkipSet.empty(1), policy))
    assert _distance(found, SHORT.joint(PROMPT)) > CAUGHT


@pytest.mark.parametrize("rule", ["everything", "from target"])
@pytest.mark.parametrize("policy", EVERY_POLICY, ids=lambda policy: policy.kind)
def test_a_broken_rule_for_looked_up_tokens_is_caught(
    policy: DraftPolicy, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", BROKEN[rule])
    draft = Draft(SkipSet.empty(1), policy, sources=(LOOKUP,), model_drafts=False)
    found = _answers(PLAIN.runner(), REPETITIVE, PLAIN.limits(), PLAIN.sampler, draft)
    assert _distance(found, PLAIN.joint(REPETITIVE)) > CAUGHT


# -- drawn by chance ---------------------------------------------------------------------------------------------


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


def _p_value_of_answers_by_chance() -> float:
    """Of 1,200 answers, drawn one after another with the sampler's own random numbers."""
    sampler, runner, draft = Sampler(1.0, seed=5), PLAIN.runner(), Draft(SkipSet.empty(1), POLICIES[0])
    runs = (self_speculative(runner, PROMPT, PLAIN.limits(), sampler, draft) for _ in range(1200))
    return _p_value(Counter(tuple(run.tokens) for run in runs), PLAIN.joint(PROMPT))


def test_random_numbers_give_the_enumerated_distribution() -> None:
    assert _p_value_of_answers_by_chance() > 1e-5


def test_as_many_random_numbers_show_a_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec_tune.engine.decoding.accept", _resample_from_target)
    assert _p_value_of_answers_by_chance() < 1e-9


def test_the_same_seed_gives_the_same_answer() -> None:
    sampler, draft, runner = Sampler(1.0), Draft(SkipSet.empty(1)), PLAIN.runner()
    answers = []
    for seed in (1, 2, 1):
        sampler.restart(seed)
        answers.append(self_speculative(runner, PROMPT, Limits(24), sampler, draft).tokens)
    assert answers[0] == answers[2] != answers[1]


# -- from logits to probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.5, 0, 1.0, 0.0),
        (2.0, 5, 1.0, 0.0),
        (1.0, 0, 0.3, 0.0),
        (0.7, 20, 0.9, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 0, 0.001, 0.0),
        (1.5, 0, 1.0, 0.05),
        (1.5, 10, 0.8, 0.1),
        (1.0, 0, 1.0, 1.0),
    ],
)
def test_the_processors_are_those_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    scores = 3 * torch.randn(40, 50, generator=torch.Generator().manual_seed(2))
    ours = Sampler(temperature, top_k, top_p, min_p=min_p).probabilities(scores)
    theirs = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    if min_p:
        theirs = MinPLogitsWarper(min_p)(None, theirs)
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


def test_only_temperature_zero_is_greedy_and_what_is_all_but_zero() -> None:
    assert all(Sampler(temperature).greedy for temperature in (0.0, 1e-320, 1e-40, 1e-6))
    assert not any(Sampler(temperature).greedy for temperature in (1e-5, 1e-3, 0.1))


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 100.0])
def test_every_temperature_that_samples_gives_probabilities(temperature: float) -> None:
    scores = torch.tensor([3.0, -1e30, -torch.inf, 2.9])
    for top_k, top_p in ((0, 1.0), (1, 1.0), (10**30, 1.0), (0, 1e-320), (2, 0.5)):
        found = Sampler(temperature, top_k, top_p).probabilities(scores)
        assert float(found.sum()) == pytest.approx(1.0)
        assert float(found[0]) == pytest.approx(float(found.max()))


def _outcomes(drafted: Tensor | None, target: Tensor, token: int) -> dict[tuple[int, int], float]:
    """Of one drafted token: how many were accepted and what follows, with the probability of both."""
    return distribution(Sampler(1.0), lambda every: accept(every, [token], [drafted], target))


def test_a_token_that_the_target_excludes_is_never_accepted() -> None:
    drafted, target = torch.tensor([0.9, 0.1, 0.0]), torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    # The target has 0.4 more of token 1 than the draft, and 0.5 more of token 2.
    assert _outcomes(drafted, target, 0) == pytest.approx({(0, 1): 0.4 / 0.9, (0, 2): 0.5 / 0.9})


def test_a_looked_up_token_is_accepted_as_often_as_the_target_draws_it() -> None:
    target = torch.tensor([[0.3, 0.2, 0.5], [0.0, 1.0, 0.0]])
    assert _outcomes(None, target, 0) == pytest.approx({(1, 1): 0.3, (0, 1): 0.2, (0, 2): 0.5})


def test_a_rejected_draft_is_replaced_from_what_the_target_has_more_of() -> None:
    drafted, target = torch.tensor([0.8, 0.2]), torch.tensor([[0.3, 0.2, 0.5], [0.0, 1.0, 0.0]])
    assert _outcomes(drafted, target, 0) == pytest.approx({(1, 1): 0.3 / 0.8, (0, 2): 0.5 / 0.8})


def test_rounding_that_leaves_no_residual_falls_back_to_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "uniform", lambda self: inf)
    even = torch.tensor([0.5, 0.5])
    num_accepted, following = accept(Sampler(1.0), [1], [even], torch.stack([even, even]))
    assert num_accepted == 0
    assert following in (0, 1)


# -- drafts that are not sampled --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [PLAIN, CASES["cool"]], ids=["plain", "cool"])
@pytest.mark.parametrize("policy", every_policy(3, 0.5), ids=lambda policy: policy.kind.value)
def test_drafts_taken_greedily_leave_the_answer_distributed_as_ever(case: Case, policy: DraftPolicy) -> None:
    runner, draft = case.runner(), Draft(SkipSet.empty(1), policy)

    def answer(every: Sampler) -> tuple[int, ...]:
        made = self_speculative(runner, PROMPT, case.limits(), every, draft, STEPS, samples_drafts=False)
        return tuple(made.tokens)

    assert _distance(distribution(case.sampler, answer), case.joint(PROMPT)) < 1e-4


def test_a_draft_taken_greedily_is_kept_as_often_as_the_target_draws_it() -> None:
    """What vLLM, SGLang, TensorRT-LLM and llama.cpp do by default."""
    runner, draft = PLAIN.runner(), Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 1))

    def accepted(every: Sampler) -> tuple[int, int]:
        made = self_speculative(runner, PROMPT, Limits(3), every, draft, samples_drafts=False)
        return made.tokens[0], made.rounds[0].num_accepted

    kept = distribution(PLAIN.sampler, accepted)
    first = TARGET[1, 2, :3].softmax(-1)
    for token in range(3):
        target, guess = TARGET[2, token, :3].softmax(-1), GUESS[2, token, :3]
        expected = float(first[token] * target[guess.argmax()])
        assert kept.get((token, 1), 0.0) == pytest.approx(expected, abs=1e-5)

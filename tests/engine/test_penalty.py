"""Repetition penalty: transformers' own, whoever decodes, and from whatever cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import num_drafted
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, RawGeneration, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.decoding import plain_rounds
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.penalty import PenalisedRunner, penalise_rows, penalised
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.engine.teacher_forcing.trace import to_trace
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.engine_kit import RUNNERS, STEPS, TableRunner, decode, load, prompt_tokens

LIMITS = Limits(24)
SKIPPED = SkipSet(4, (1,), (2,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(kit.tiny_llama(tmp_path_factory.mktemp("tiny")))


def of_transformers(loaded: LoadedModel, prompt: list[int], penalty: float) -> list[int]:
    output = loaded.model.generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=LIMITS.max_new_tokens,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=[loaded.vocabulary_size],
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt) :]]


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("penalty", [1.3, 0.9])
def test_greedy_answers_under_a_penalty_are_those_of_transformers(tiny: LoadedModel, name: str, penalty: float) -> None:
    runner, sampler, prompt = RUNNERS[name](tiny), Sampler(repetition_penalty=penalty), prompt_tokens(12, 3)
    expected = of_transformers(tiny, prompt, penalty)
    assert expected != of_transformers(tiny, prompt, 1.0)
    assert autoregressive(runner, prompt, LIMITS, sampler).tokens == expected
    for policy in (DraftPolicy(PolicyKind.FIXED, 3), DraftPolicy(PolicyKind.COST_AWARE, credit=4.0)):
        draft = Draft(SKIPPED, policy, sources=(NgramLookup(min_match=1),))
        made = self_speculative(runner, prompt, LIMITS, sampler, draft, STEPS)
        assert made.tokens == expected
        assert num_drafted(made.rounds) > 0


def test_what_a_cache_held_is_held_against_tokens_too(tiny: LoadedModel) -> None:
    runner, sampler, prompt = FastRunner(tiny), Sampler(repetition_penalty=1.5), prompt_tokens(12, 5)
    expected = autoregressive(runner, prompt, LIMITS, sampler).tokens
    record = RawGeneration()
    for _ in plain_rounds(runner, prompt, LIMITS, sampler, record, known=9):
        pass
    assert record.tokens == expected
    assert record.prefilled == 3


def test_without_a_penalty_the_runner_stays_what_it_is() -> None:
    runner = TableRunner(torch.zeros(4, 4, 4))
    assert penalised(runner, 1.0) is runner


def test_every_row_is_penalised_by_its_own_prefix_alone() -> None:
    table = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(1))
    plain, under = TableRunner(table), PenalisedRunner(TableRunner(table), 1.7)
    prefill(plain, [0, 1])
    prefill(under, [0, 1])

    def expected(logits: Tensor, tokens: list[int]) -> Tensor:
        found: Tensor = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), logits[None])[0]
        return found

    rows = zip(
        under.forward([2, 3, 2]).logits,
        plain.forward([2, 3, 2]).logits,
        ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]),
        strict=True,
    )
    for ours, bare, tokens in rows:
        torch.testing.assert_close(ours, expected(bare, tokens))
    under.rewind(3)
    plain.rewind(3)
    torch.testing.assert_close(decode(under, 4), expected(decode(plain, 4), [0, 1, 2, 4]))  # 3 has been taken back


def rows_of_transformers(logits: Tensor, text: list[int], penalty: float) -> Tensor:
    """Every row of logits [positions, vocabulary] after all of ``text`` up to it."""
    process, whole = RepetitionPenaltyLogitsProcessor(penalty), torch.tensor([text])
    ends = range(len(text) - len(logits) + 1, len(text) + 1)
    return torch.cat([process(whole[:, :end], row[None].clone()) for end, row in zip(ends, logits, strict=True)])


@pytest.mark.parametrize("penalty", [1.6, 0.7])
def test_rows_along_a_known_text_are_penalised_as_by_transformers(penalty: float) -> None:
    text = prompt_tokens(20, 4) + prompt_tokens(6, 4)
    logits = torch.randn(9, max(text) + 1, generator=torch.Generator().manual_seed(2))
    expected = rows_of_transformers(logits, text, penalty)
    assert torch.equal(penalise_rows(logits, text, penalty), expected)
    few = sorted(text)[len(text) // 2]  # a draft's part of the vocabulary
    assert torch.equal(penalise_rows(logits[:, :few], text, penalty), expected[:, :few])
    assert penalise_rows(logits, text, 1.0) is logits


def test_what_a_draft_says_along_a_text_is_under_its_penalty() -> None:
    text = tuple(prompt_tokens(12, 4) + prompt_tokens(5, 4))
    windows = [Window(text, 3, 9), Window(text, 10, 16)]
    logits = torch.randn(12, max(text) + 1, generator=torch.Generator().manual_seed(3))
    rows = [
        rows_of_transformers(part, list(text[: w.end]), 1.4) for part, w in zip(logits.split(6), windows, strict=True)
    ]
    under = [Window(text, window.start, window.end, 1.4) for window in windows]
    assert to_trace(logits, under) == to_trace(torch.cat(rows), windows)
    assert to_trace(logits, under) != to_trace(logits, windows)

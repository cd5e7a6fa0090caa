"""Repetition penalty: transformers' own, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.penalty import PenalisedRunner, penalise_rows, penalised
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.engine.teacher_forcing.trace import to_trace
from selfspec_tune.engine.teacher_forcing.window import WindowIds
from tests.engine_kit import TableRunner, decode, prompt_tokens


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


def test_what_was_read_in_inference_mode_is_taken_back_outside_of_it() -> None:
    table = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(1))
    mixed, steady = PenalisedRunner(TableRunner(table), 1.7), PenalisedRunner(TableRunner(table), 1.7)
    with torch.inference_mode():
        prefill(mixed, [0, 1, 2])
    for runner in (mixed, steady):
        prefill(runner, [3, 1])
    with torch.inference_mode():
        decoded = decode(mixed, 4)
    torch.testing.assert_close(decoded, decode(steady, 4))


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
    others = [token for token in sorted(set(text)) if token >= few][::2]
    kept = [*range(few), *others]
    assert torch.equal(penalise_rows(logits[:, kept], text, penalty, others), expected[:, kept])
    assert penalise_rows(logits, text, 1.0) is logits


def test_what_a_draft_says_along_a_text_is_under_its_penalty() -> None:
    text = tuple(prompt_tokens(12, 4) + prompt_tokens(5, 4))
    windows = [Window(text, 3, 9), Window(text, 10, 16)]
    logits = torch.randn(12, max(text) + 1, generator=torch.Generator().manual_seed(3))
    rows = [
        rows_of_transformers(part, list(text[: w.end]), 1.4) for part, w in zip(logits.split(6), windows, strict=True)
    ]
    under = [Window(text, window.start, window.end, 1.4) for window in windows]
    for vocabulary in (None, sorted(text)[len(text) // 2]):
        ids = WindowIds(windows, Draft(SkipSet.empty(1), vocabulary=vocabulary), max(text) + 1, logits.device)
        part = ids.among(logits)
        assert to_trace(part.clone(), under, ids) == to_trace(ids.among(torch.cat(rows)), windows, ids)
        assert to_trace(part.clone(), under, ids) != to_trace(part, windows, ids)

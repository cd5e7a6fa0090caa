"""Repetition penalty: transformers' own, row by row."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.penalty import PenalisedRunner, penalised
from tests.engine_kit import TableRunner, decode


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

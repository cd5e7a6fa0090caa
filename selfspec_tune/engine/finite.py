"""Logits that are numbers: a model whose logits are not accepts whatever it drafts, and looks fast."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from selfspec_tune.engine.runner import Runner
from selfspec_tune.errors import NonFiniteError

_NUM_TOKENS = 40  # those that engines are compared on


def most_probable(logits: Tensor, runner: Runner) -> list[int]:
    """The most probable token of each row of logits [positions, vocabulary], those of the runner's last pass.

    Raises `NonFiniteError`, as `check_logits` does.
    """
    largest, tokens = logits.max(-1)
    rows: list[list[float]] = torch.stack((tokens.double(), largest.double()), -1).tolist()  # waits for the device once
    check_largest([row[1] for row in rows], runner)
    return [int(row[0]) for row in rows]


def check_logits(logits: Tensor, runner: Runner) -> None:
    """Raise `NonFiniteError` unless logits [positions, vocabulary] of the runner's last pass are numbers.

    Minus infinity is one where others are not: a model's way to rule tokens out.
    """
    check_largest(logits.max(-1).values.tolist(), runner)  # a NaN is the largest of all


def check_largest(largest: Sequence[float], runner: Runner) -> None:
    """The same by the largest logit, or the logarithm of the normaliser, of each position."""
    for place, value in enumerate(largest):
        if not isfinite(value):
            raise NonFiniteError(
                f"{runner.about}: the logits at position {runner.length - len(largest) + place + 1} are no finite "
                "numbers, so nothing that it decodes means anything, and no figure is given. Use another --dtype: "
                "float16 ends at 65504, float32 holds most. If it stays in float32, the checkpoint is broken: get it "
                "again."
            )


def check_differ(logits: Tensor, runner: Runner) -> None:
    """Raise `NonFiniteError` where logits [positions, vocabulary], which are numbers, are all the same at each."""
    low, high = torch.aminmax(logits, dim=-1)
    if bool((low == high).all()):
        raise NonFiniteError(
            f"{runner.about}: every token has the same logit at position {runner.length}, whatever comes before it: "
            "it computes nothing. Its weights or its configuration are broken: get the checkpoint again."
        )


def check_first_pass(runner: Runner, num_embedded: int) -> None:
    """Look at a pass over arbitrary but fixed tokens, of the ``num_embedded`` that the model embeds.

    Raises `NonFiniteError` where it does not give numbers at every position, or the same one to every token.
    """
    generator = torch.Generator().manual_seed(0)
    count = min(_NUM_TOKENS, runner.capacity)
    tokens: list[int] = torch.randint(min(runner.vocabulary_size, num_embedded), (count,), generator=generator).tolist()
    runner.reserve(len(tokens))
    first = runner.prefill(tokens[:1])[None]
    check_logits(first, runner)
    logits = torch.cat((first, runner.verify(tokens[1:]))) if len(tokens) > 1 else first
    check_logits(logits[1:], runner)
    check_differ(logits, runner)

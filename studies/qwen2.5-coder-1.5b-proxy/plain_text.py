"""Text to predict drafts on and to decode again: what plain decoding really makes of given stretches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfspec_tune.engine import autoregressive
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.measure.workload import WorkItem, Workload

_FEWEST_TOKENS = 4  # of a stretch that ends early: with fewer there is nothing to draft


@dataclass(frozen=True, slots=True)
class Text:
    """Windows that drafts are predicted on, and the same stretches as items to decode."""

    windows: list[Window]
    items: list[WorkItem]


def plain_text(workload: Workload, items: Sequence[WorkItem], file: Path) -> Text:
    """The stretches of ``items`` as plain decoding continues them; kept in ``file``.

    In half precision that is not always the answer that they are cut from: here their prefix is read in
    one pass, there it was decoded, so two tokens whose logits nearly tie may swap. Raises `UsageError`
    where every stretch ends at once.
    """
    if not file.exists():
        runner, sampler = workload.runner, workload.sampler
        made = {item.id: autoregressive(runner, item.tokens, item.limits, sampler).tokens for item in items}
        write_json_atomic(file, made)
    decoded = read_json(file)
    usable = [item for item in items if len(decoded[item.id]) >= _FEWEST_TOKENS]
    if not usable:
        raise UsageError("The model's answers are too short to draft from; give --prompts with longer answers.")
    return Text([_window(item, decoded[item.id]) for item in usable], usable)


def _window(item: WorkItem, decoded: Sequence[int]) -> Window:
    """The positions that decoding of ``item`` drafts from: all of its own tokens but the last."""
    tokens = (*item.tokens, *decoded)
    return Window(tokens, len(item.tokens), len(tokens) - 1)

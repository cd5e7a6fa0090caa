"""What the search reads: the full model's own answers to the calibration prompts, and the texts made of them.

Whole answers over all tasks, and windows spread over them: a skip set tuned on how
answers begin (they restate the prompt) disappoints where the body is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspec_tune.checks import wholes
from selfspec_tune.draft import Draft
from selfspec_tune.draft.sources import SOURCES
from selfspec_tune.engine import Limits, self_speculative
from selfspec_tune.engine.teacher_forcing import DraftScorer, Window
from selfspec_tune.errors import BudgetError
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.requests import Objective
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.budget import NUM_HELD_OUT, TRIAL_ITEMS, WIDE_WINDOWS
from selfspec_tune.search.study import tokens_hash

_SCHEMA, _VERSION = "selfspec-tune/calibration", 2
_SHORTEST_ANSWER = 8
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True, slots=True)
class Answer:
    """A calibration item and the full model's continuation of it."""

    item: WorkItem
    tokens: tuple[int, ...]


FirstAnswers = Callable[[int], Sequence[Answer]]
"""The answers to the first so many prompts, continued when first asked for."""


def calibrate(
    workload: Workload, items: Sequence[WorkItem], draft: Draft, file: Path, reporter: Reporter
) -> list[Answer]:
    """Continue every item by the full model; kept in ``file`` by the item's tokens, from which it resumes.

    One after the other, by the engine itself: a batch of prompts would take several times the
    memory of any measurement. Decoding is self-speculative by ``draft``, which changes no token.
    """
    known = _read_answers(file, workload.runner.vocabulary_size) if file.exists() else {}
    answers = []
    for number, item in enumerate(items):
        key = tokens_hash(item.tokens)
        found = known.get(key, known.get(item.prompt.hash))  # version 1 kept them by the prompts' text
        if found is None:
            reporter.progress(Progress(number, len(items), detail="continuations by the full model"))
            known[key] = found = _continue(workload, item, draft)
            write_json_atomic(file, {"schema": _SCHEMA, "version": _VERSION, "answers": known})
        answers.append(Answer(item, tuple(found)))
    return answers


def _read_answers(file: Path, vocabulary_size: int) -> dict[str, list[int]]:
    """What `calibrate` kept: token ids, of which no other may reach the model's embedding."""
    value = read_versioned(file, _SCHEMA, _VERSION)
    with taken_apart(file):
        answers: dict[str, Any] = value["answers"]
        return {hash_: list(wholes("an answer", tokens, vocabulary_size - 1)) for hash_, tokens in answers.items()}


def sources_alone(base: Draft) -> Draft:
    """A draft from the context alone, few tokens at a time: what `calibrate` decodes with at worst."""
    return replace(base, sources=tuple(kind().brief for kind in SOURCES.values()), model_drafts=False)


def _continue(workload: Workload, item: WorkItem, draft: Draft) -> list[int]:
    return self_speculative(workload.runner, item.tokens, item.limits, workload.sampler, draft).tokens


def spread_windows(answers: Sequence[Answer], *, length: int, most: int, seed: int) -> list[tuple[Answer, Window]]:
    """Up to ``most`` windows of up to ``length`` positions, spread over answers and over each answer.

    Successive windows begin at a different fraction of their answer each, so that
    together they cover beginnings, bodies and ends alike.
    """
    usable = [answer for answer in answers if len(answer.tokens) > _SHORTEST_ANSWER]
    generator = random.Random(seed)
    windows: dict[Window, Answer] = {}
    for _turn in range(most):
        for answer in generator.sample(usable, len(usable)):
            room = max(len(answer.tokens) - 1 - length, 0)
            fraction = (len(windows) * _GOLDEN_RATIO) % 1.0
            windows.setdefault(_window(answer, round(room * fraction), length), answer)
            if len(windows) == most:
                return [(answer, window) for window, answer in windows.items()]
    return [(answer, window) for window, answer in windows.items()]


def _window(answer: Answer, offset: int, length: int) -> Window:
    prompt = len(answer.item.tokens)
    text = (*answer.item.tokens, *answer.tokens)
    start = prompt + offset
    end = min(start + length, len(text) - 1)
    return Window(text[: end + 1], start, end)


def trial_items(answers: Sequence[Answer], *, length: int, most: int, seed: int) -> list[WorkItem]:
    """Windows of whole answers, each decoded from its verified prefix: what a trial measures."""
    spread = spread_windows(answers, length=length, most=most, seed=seed)
    return [_window_item(answer, window, index) for index, (answer, window) in enumerate(spread)]


def _window_item(answer: Answer, window: Window, index: int) -> WorkItem:
    limits = Limits(window.end - window.start, answer.item.limits.eos_token_ids)
    tokens = window.tokens[: window.start + 1]
    return WorkItem(f"{answer.item.id}@{index}", answer.item.prompt, tokens, limits)


@dataclass(frozen=True, slots=True)
class Text:
    """Text that drafts are scored on: windows of the first ``num_answers`` answers.

    ``depths``: tokens of a draft that are told apart. ``share`` of what is left of the proxy's time is spent here;
    the ``keep`` best and diverse go on to the next.
    """

    name: str
    num_answers: int
    num_windows: int
    length: int
    depths: int = 1
    share: float = 0.0
    keep: int = 0

    @property
    def num_rows(self) -> int:
        """Rows that one pass of a draft computes: every position once for each token told apart."""
        return self.num_windows * self.length * self.depths

    def scorer(self, workload: Workload, answers: Sequence[Answer], seed: int) -> DraftScorer:
        """A scorer of the workload's drafts on this much of ``answers``.

        Raises `BudgetError` where all of them are too short to score anything on.
        """
        spread = spread_windows(answers, length=self.length, most=self.num_windows, seed=seed)
        windows = [window for _, window in spread]
        if not windows:
            raise BudgetError(
                f"The model's answers are too short for the {self.name} text (8 tokens or fewer each). Use prompts "
                "with longer answers."
            )
        return workload.scorer(windows, self.depths)


# What a draft makes of its own tokens is worse than the full model's keys and values. So predictions from first tokens
# alone were 6.7 % above what the counts of real runs give, for drafts that leave out half of a 1.5B model; with two
# tokens told apart 2.1 % above, with three 0.2 % below (11 drafts). Each costs as much as the first.
TEXTS = (
    Text("narrow", TRIAL_ITEMS, 10, 24, share=0.35, keep=24),
    Text("middle", 12, 20, 32, depths=2, share=0.65, keep=16),
    Text("wide", WIDE_WINDOWS, WIDE_WINDOWS, 32, depths=3, share=1.0, keep=20),
)
IMPORTANCE = Text("importance", TRIAL_ITEMS, 5, 24)
HELD_OUT = Text("held-out", NUM_HELD_OUT, 12, 40, depths=3)
JUDGED = Text("judged", 24, 24, 40, depths=3)  # for the curves of a comparison


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a search: for candidates, each wider than the one before; for importance; to tell overfitting by."""

    candidates: tuple[Text, ...]
    importance: Text
    held_out: Text

    def narrowest(self, number: int) -> Texts:
        """With the first so many texts for candidates, the last of which takes all the time that is left."""
        *before, last = self.candidates[: max(number, 1)]
        return replace(self, candidates=(*before, replace(last, share=1.0)))


SHARED = Texts(TEXTS, IMPORTANCE, HELD_OUT)
# A draft that stands alone reads all that comes before a window, the prompt too: few long windows cost less.
STANDALONE = Texts(
    (
        Text("narrow", TRIAL_ITEMS, 3, 96, share=0.35, keep=24),
        Text("middle", 12, 6, 112, share=0.65, keep=16),
        Text("wide", WIDE_WINDOWS, 12, 112, share=1.0, keep=20),
    ),
    Text("importance", TRIAL_ITEMS, 2, 64),
    Text("held-out", NUM_HELD_OUT, 4, 112),
)


def texts_of(objective: Objective) -> Texts:
    """The texts of a search with that objective."""
    return STANDALONE if objective is Objective.STANDALONE else SHARED

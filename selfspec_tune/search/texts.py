"""The texts that a search predicts drafts on, each wider than the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.errors import BudgetError
from selfspec_tune.measure.workload import Workload
from selfspec_tune.requests import Objective
from selfspec_tune.search.budget import NUM_HELD_OUT, TRIAL_ITEMS, WIDE_WINDOWS
from selfspec_tune.search.calibration import Answer, spread_windows


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

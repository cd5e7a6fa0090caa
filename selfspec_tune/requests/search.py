"""One search, or the same one by several strategies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.requests.draft import DraftOptions, Objective
from selfspec_tune.requests.model import ModelOptions
from selfspec_tune.requests.prompts import PromptOptions


class StrategyName(StrEnum):
    """Ways to search: our own in stages, Optuna's samplers, uniform skipping, and those of two other projects."""

    STAGED = "staged"
    TPE = "tpe"
    GP = "gp"
    CMAES = "cmaes"
    RANDOM = "random"
    UNIFORM = "uniform"
    SELF_SD = "self-sd"
    SWIFT = "swift"


_PUBLISHED = frozenset({StrategyName.SELF_SD, StrategyName.SWIFT})


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One search by a ``strategy``.

    ``trials`` and ``timeout_seconds`` bound it, whichever comes first; None: no bound of that kind.
    ``start_from``: skip sets to try first, as files in any dialect, folders of studies or texts.
    """

    out: Path
    model: ModelOptions = field(default_factory=ModelOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    draft: DraftOptions = field(default_factory=DraftOptions)
    trials: int | None = None
    timeout_seconds: float | None = None
    strategy: StrategyName = StrategyName.STAGED
    start_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.draft.objective is Objective.STANDALONE and self.strategy in _PUBLISHED:
            raise UsageError(
                f"`strategy` {self.strategy} searches, as it was published, for drafts that share the model's cache. "
                "Choose another strategy, or leave out `objective` standalone."
            )
        if self.trials is not None and self.trials < 1:
            raise BudgetError(f"`trials` {self.trials}: expected at least 1. A search measures at least one trial.")
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds < math.inf:
            raise BudgetError(f"`timeout` {self.timeout_seconds:g}s: expected a positive duration such as 45m or 2h.")


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The same ``search`` by several ``strategies``, each in a folder of its own under ``search.out``.

    ``early_seconds``: what those of ``early_strategies`` would have given after so long is measured too.
    """

    search: SearchRequest
    strategies: tuple[StrategyName, ...]
    early_seconds: tuple[float, ...] = ()
    early_strategies: frozenset[StrategyName] = frozenset({StrategyName.STAGED})

    def __post_init__(self) -> None:
        if len(set(self.strategies)) < max(2, len(self.strategies)):
            names = ", ".join(self.strategies) or "none"
            raise UsageError(f"`strategies` {names}: expected at least two different ones.")
        if self.early_seconds and not self.early_strategies & set(self.strategies):
            some = ", ".join(sorted(self.early_strategies))
            raise UsageError(f"`early` measures what {some} had found: name it in `strategies`, or leave `early` out.")

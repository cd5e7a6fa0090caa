"""Which prompts, and how they are continued."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from selfspec_tune.checks import MOST_TOKENS, check_number
from selfspec_tune.errors import UsageError
from selfspec_tune.files import writable
from selfspec_tune.requests.sampling import LARGEST_SEED, Sampling

DEFAULT_NUM_PROMPTS = 64
TEMPLATE_DATE = "26 Jul 2024"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions(Sampling):
    """Which prompts, and how they are continued. ``num_prompts`` None: 64, or all where there are fewer.

    With ``tasks``, prompts of these alone, and each task is split on its own. ``template_date``: what chat
    templates print as today's.
    """

    source: str = "builtin"
    num_prompts: int | None = None
    max_new_tokens: int = 128
    template: str = "auto"
    seed: int = 0
    tasks: tuple[str, ...] = ()
    template_date: str = TEMPLATE_DATE

    def __post_init__(self) -> None:
        are_names = isinstance(self.tasks, tuple | list) and all(isinstance(task, str) for task in self.tasks)
        if not are_names or not isinstance(self.source, str) or not isinstance(self.template, str):
            raise UsageError(
                f"Prompts of {self.source!r}, tasks {self.tasks!r}, template {self.template!r}: expected names. If a "
                "skip.json says so, correct its provenance, or give `prompts`, `tasks` and `template`."
            )
        object.__setattr__(self, "tasks", tuple(sorted(set(self.tasks))))
        if self.num_prompts is not None:
            check_number("num_prompts", self.num_prompts, 1, math.inf, "at least 1", whole=True)
        longest = f"at least 2, up to {MOST_TOKENS}"
        check_number("max_new_tokens", self.max_new_tokens, 2, MOST_TOKENS, longest, whole=True)
        check_number("seed", self.seed, 0, LARGEST_SEED, f"0 or more, up to {LARGEST_SEED}", whole=True)
        Sampling.__post_init__(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for our files, without ``tasks`` where prompts of all tasks are meant."""
        return {
            "source": writable(self.source),
            "num_prompts": self.num_prompts,
            "max_new_tokens": self.max_new_tokens,
            "template": self.template,
            **self.recorded,
            "seed": self.seed,
            **({"tasks": list(self.tasks)} if self.tasks else {}),
            "template_date": self.template_date,
        }

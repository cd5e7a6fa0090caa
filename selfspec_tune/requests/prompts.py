"""Which prompts, and how they are continued."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from selfspec_tune.checks import MOST_TOKENS, check_number
from selfspec_tune.errors import UsageError
from selfspec_tune.files import writable

DEFAULT_NUM_PROMPTS = 64
SMALLEST_TEMPERATURE = 1e-5  # below, one token has all of the probability: that is greedy decoding
LARGEST_TEMPERATURE = 100.0  # above, every token is as likely as any other
TEMPERATURES = f"0 (greedy) or more, up to {LARGEST_TEMPERATURE:g}"
LARGEST_SEED = 2**31 - 1  # every generator takes it, and what is derived from it
TEMPLATE_DATE = "26 Jul 2024"


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Which prompts, and how they are continued. ``num_prompts`` None: 64, or all where there are fewer.

    ``temperature`` 0 is greedy, and what is below `SMALLEST_TEMPERATURE` becomes 0; ``top_k`` 0 and ``top_p`` 1 keep
    all. With ``tasks``, prompts of these alone, and each task is split on its own. ``template_date``: what chat
    templates print as today's.
    """

    source: str = "builtin"
    num_prompts: int | None = None
    max_new_tokens: int = 128
    template: str = "auto"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
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
        check_number("temperature", self.temperature, 0, LARGEST_TEMPERATURE, TEMPERATURES)
        if self.temperature < SMALLEST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        check_number("top_p", self.top_p, math.ulp(0.0), 1, "above 0 and at most 1")
        check_number("top_k", self.top_k, 0, math.inf, "0 (off) or more", whole=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for our files, without ``tasks`` where prompts of all tasks are meant."""
        plain = {**asdict(self), "source": writable(self.source), "tasks": list(self.tasks)}
        return plain if self.tasks else {key: value for key, value in plain.items() if key != "tasks"}

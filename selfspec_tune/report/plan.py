"""What a search would do, for ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfspec_tune.report import text

if TYPE_CHECKING:
    from selfspec_tune.search import SearchPlan

_SHOWN_CHARACTERS = 600  # of a prompt


def print_plan(console: Console, plan: SearchPlan) -> None:
    """Model, prompts by split, the first of each task, stages with estimated times, and memory."""
    model = plan.model
    known = (model.get(key) for key in ("name", "dtype", "device"))
    console.print(Text(" · ".join(str(part) for part in known if part), style="bold"))
    console.print(_facts(plan))
    console.print(_first_prompts(plan))
    console.print(_stages(plan))
    total = plan.total_seconds
    estimate = "cannot be estimated before a first run" if total is None else f"about {text.duration(total)}"
    console.print(Text(f"Time in all: {estimate}. A few steps were timed; nothing was written."))


def _facts(plan: SearchPlan) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_row("sub-layers", str(plan.num_sublayers))
    table.add_row("prompts", ", ".join(f"{number} {split}" for split, number in plan.splits.items()))
    table.add_row("prompt tokens", ", ".join(f"{key} {number}" for key, number in plan.prompt_tokens.items()))
    if plan.config.get("start_from"):
        table.add_row("starts from", Text(", ".join(plan.config["start_from"])))
    table.add_row("memory", ", ".join(f"{text.size(num)} {what}" for what, num in plan.memory_bytes.items()))
    return table


def _first_prompts(plan: SearchPlan) -> Table:
    table = text.table("task", "its first prompt, as the model reads it")
    for task, prompt in plan.first_prompts.items():
        table.add_row(
            Text(text.spelled_out(task, _SHOWN_CHARACTERS)), Text(text.spelled_out(prompt, _SHOWN_CHARACTERS))
        )
    return table


def _stages(plan: SearchPlan) -> Table:
    table = text.table("stage", "what")
    table.add_column("about", justify="right")
    for name, detail, seconds in plan.stages:
        table.add_row(Text(name), Text(detail), text.UNKNOWN if seconds is None else text.duration(seconds))
    return table

"""Which column of a data set holds the prompt, and how a row becomes a `Prompt`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.prompt import Prompt

Row = Mapping[str, Any]

TEXT_COLUMNS = ("prompt", "text", "question", "instruction", "turns", "document", "article")
ID_COLUMNS = ("id", "prompt_id", "question_id", "task_id")
TASK_COLUMNS = ("task", "category")
UNKNOWN_TASK = "general"


def choose_text_column(columns: Collection[str], *, where: str) -> str:
    """The one column that can be the prompt.

    A lone column is taken; else exactly one of `TEXT_COLUMNS` must be there. Raises
    `PromptError` naming the columns if none or several are.
    """
    if len(columns) == 1:
        return next(iter(columns))
    known = [column for column in TEXT_COLUMNS if column in columns]
    if len(known) == 1:
        return known[0]
    found = ", ".join(known or columns)
    problem = "several columns could be the prompt" if known else "no column is known to be the prompt"
    raise PromptError(f"{where}: {problem} ({found}). Name it as {where}#COLUMN, or use a preset as PRESET:{where}.")


def first_present(names: Sequence[str], columns: Collection[str]) -> str | None:
    """The first of ``names`` among ``columns``."""
    return next((name for name in names if name in columns), None)


def first_turn(value: object) -> str:
    """The prompt in a cell: a string itself, or the first turn of a list; blank if there is neither."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else ""
    return value.strip("\n") if isinstance(value, str) else ""


def to_prompts(
    rows: Sequence[Row],
    *,
    origin: str,
    text_column: str,
    wording: str = "{text}",
    task: str | None = None,
) -> list[Prompt]:
    """The rows that have a text, as prompts named ``origin/id``.

    ``wording`` is the instruction around ``{text}``. Without a fixed ``task`` it is read
    from `TASK_COLUMNS`. Rows without an id are named by their number.
    """
    columns = rows[0].keys() if rows else ()
    id_column = first_present(ID_COLUMNS, columns)
    task_column = first_present(TASK_COLUMNS, columns)
    prompts = []
    for number, row in enumerate(rows):
        text = first_turn(row.get(text_column))
        if not text.strip():
            continue
        name = row.get(id_column) if id_column else None
        label = row.get(task_column) if task_column else None
        prompts.append(
            Prompt(
                id=_qualified(origin, number if name is None else name),
                task=task or str(label or UNKNOWN_TASK),
                text=wording.replace("{text}", text),
            )
        )
    return prompts


def _qualified(origin: str, name: object) -> str:
    """``origin/name``, or the name alone where it says its origin already (``HumanEval/0``)."""
    return str(name) if "/" in str(name) else f"{origin}/{name}"

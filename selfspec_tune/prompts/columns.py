"""Which columns of a data set make the prompt, and how a row becomes a `Prompt`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfspec_tune.checks import kind_of_value, shown
from selfspec_tune.errors import PromptError
from selfspec_tune.files import writable
from selfspec_tune.prompts.prompt import Prompt, Turn, is_conversation, is_list, read_conversation

Row = Mapping[str, Any]

TURNS = "turns"  # what one user says in turn: of it the first is asked
TEXT_COLUMNS = ("prompt", "text", "question", "instruction", TURNS, "document", "article")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
ID_COLUMNS = ("id", "prompt_id", "question_id", "task_id")
TASK_COLUMNS = ("task", "category")
SYSTEM_COLUMNS = ("system", "system_prompt")
UNKNOWN_TASK = "general"
# What belongs to a prompt but has a column of its own: Alpaca's input and Dolly's context follow the instruction, the
# context of a question (SQuAD), or its passage (BoolQ), precedes it.
_AFTER = {"instruction": ("input", "context")}
_BEFORE = {"question": ("context", "passage")}
_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class Columns:
    """What makes a prompt: the column ``text``, and those whose texts stand before or after it, or are a system turn.

    ``holds_turns``: several texts in it are what one user says in turn.
    """

    text: str
    before: str | None = None
    after: str | None = None
    system: str | None = None
    holds_turns: bool = False

    def read_of(self, known: Collection[str]) -> list[str]:
        """Those of the ``known`` columns that prompts are made of or named by, in their order."""
        named = (first_present(names, known) for names in (ID_COLUMNS, TASK_COLUMNS))
        read = {self.text, self.before, self.after, self.system, *named}
        return [column for column in known if column in read]


_TURNS_BEGIN = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_NAME = re.compile(r"[\w().-]+")  # of a lone column; anything else may be a prompt, or several fields


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def choose_columns(columns: Collection[str], *, where: str) -> Columns:
    """The one column that can be the prompt, with what belongs to it.

    Exactly one of `TEXT_COLUMNS` must be there, or else of `CHAT_COLUMNS`; a lone column is taken whatever its name.
    Raises `PromptError` naming the columns if none or several could be it.
    """
    known = [c for c in (_named(name, columns) for name in TEXT_COLUMNS) if c is not None]
    known = known or [c for c in (_named(name, columns) for name in CHAT_COLUMNS) if c is not None]
    instruction = _named("instruction", columns)
    if instruction is not None and _named("output", columns) is not None:
        known = [instruction]  # Alpaca's, whose `text` is the whole row with its answer
    if not known and len(columns) == 1:
        known = list(columns)
        if not _NAME.fullmatch(known[0].strip()):
            raise PromptError(
                f"{where}: its only column is called {known[0]!r:.80}, as where a prompt stands in the place of the "
                f"header. Add a header line such as prompt, or name the column as {where}#COLUMN."
            )
    if len(known) != 1:
        problem = "several columns could be the prompt" if known else "no column is known to be the prompt"
        found = ", ".join(known or columns)
        raise PromptError(
            f"{where}: {problem} ({found:.300}). Name it as {where}#COLUMN, or use a preset as PRESET:{where}."
        )
    name = known[0].strip().lower()
    return Columns(
        known[0],
        before=first_present(_BEFORE.get(name, ()), columns),
        after=first_present(_AFTER.get(name, ()), columns),
        system=first_present(SYSTEM_COLUMNS, columns),
    )


def first_present(names: Sequence[str], columns: Collection[str]) -> str | None:
    """The column that has the first of ``names`` that there is."""
    return next((column for name in names if (column := _named(name, columns)) is not None), None)


def is_named(column: str, names: Collection[str]) -> bool:
    """Whether the column has one of these names, in capitals or not."""
    return column.strip().lower() in names


def _named(name: str, columns: Collection[str]) -> str | None:
    """The column of that name, in capitals or not."""
    return next((column for column in columns if is_named(column, (name,))), None)


def several_texts(value: object) -> bool:
    """Whether it is a list of more than one entry, with texts among them."""
    return is_list(value) and len(value) > 1 and any(isinstance(entry, str) for entry in value)


def without_text(rows: Sequence[Row], column: str) -> str:
    """In words, what cells hold in which there is no text: ``a number, null``."""

    def kind(value: object) -> str:
        if isinstance(value, str):
            return "a blank text"
        return "a conversation in which no user speaks" if is_conversation(value) else kind_of_value(value)

    return ", ".join(dict.fromkeys(kind(row.get(column)) for row in rows))


def to_prompts(
    rows: Sequence[Row],
    *,
    origin: str,
    columns: Columns,
    where: str,
    wording: str = "{text}",
    task: str | None = None,
) -> list[Prompt]:
    """The rows that have a text, as prompts named ``origin/id``.

    ``wording`` is the instruction around ``{text}``. Without a fixed ``task`` it is read
    from `TASK_COLUMNS`. Rows without an id are named by their number. Raises `PromptError` with ``where``
    and the row for a conversation or a context that cannot be read as text.
    """
    known = columns_of(rows)
    id_column = first_present(ID_COLUMNS, known)
    task_column = first_present(TASK_COLUMNS, known)
    prompts = []
    for number, row in enumerate(rows):
        asked = _asked(row, columns, f"{where}, row {number + 1}")
        if asked is None:
            continue
        text, history = asked
        name = row.get(id_column) if id_column else None
        label = row.get(task_column) if task_column else None
        prompts.append(
            Prompt(
                id=_qualified(origin, number if name is None else name),
                task=task or writable(str(label or UNKNOWN_TASK)),
                text=wording.replace("{text}", text),
                history=history,
            )
        )
    return prompts


def _asked(row: Row, columns: Columns, where: str) -> tuple[str, tuple[Turn, ...] | None] | None:
    """The row's text with what stands before and after it, and the turns before; None where it has no text."""
    text, history = _read_cell(row.get(columns.text), columns.text, where, holds_turns=columns.holds_turns)
    if not text.strip():
        return None
    beside = [_beside(row, column, columns.text, where) for column in (columns.before, columns.after, columns.system)]
    before, after, system = beside
    text = _BETWEEN.join(part for part in (before, text, after) if part)
    if system and not (history and history[0][0] == "system"):
        history = (("system", system), *(history or ()))
    _check_whole([text, *(said for _, said in history or ())], where)
    return text, history


def _read_cell(
    value: object, column: str, where: str, *, holds_turns: bool = False
) -> tuple[str, tuple[Turn, ...] | None]:
    """What a cell asks: its text, the first of a user's turns or the last user turn of a conversation.

    The text is blank where there is none; a number is none. Raises `PromptError` for an object that is no conversation,
    and for several texts of which nothing says that they are turns.
    """
    if isinstance(value, str) and _is_written_list(value, column):
        value = _decoded(value, column, where)  # as tables keep lists
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if is_conversation(value):
        turns = read_conversation(value, where=where)
        return (turns[-1][1].strip("\n"), tuple(turns[:-1])) if turns else ("", None)
    if several_texts(value) and not (holds_turns or is_named(column, (TURNS,))):
        raise PromptError(
            f"{where}: {column} holds several texts ({shown(value)}); expected one. Write a row for each; where they "
            f"are what one user says in turn, call the column {TURNS}, and the first is asked."
        )
    if is_list(value):
        value = value[0] if value else ""
    if isinstance(value, Mapping) or is_list(value):
        raise PromptError(
            f"{where}: {column} holds {shown(value)}; expected a text, or a list of turns with role and "
            "content. Name another column as FILE#COLUMN."
        )
    return (value.strip("\n") if isinstance(value, str) else ""), None


def _is_written_list(text: str, column: str) -> bool:
    """Whether it is a list written as text: any in a column for lists, elsewhere what begins and ends as turns do."""
    if is_named(column, (*CHAT_COLUMNS, TURNS)):
        return text.lstrip()[:1] == "["
    return _TURNS_BEGIN.match(text) is not None and text.rstrip().endswith("]")


def _decoded(text: str, column: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{where}: {column} holds a list of turns that is not JSON ({error}). Write the set as JSON lines, such as "
            "by pandas' to_json(…, orient='records', lines=True)."
        ) from error


def _beside(row: Row, column: str | None, main: str, where: str) -> str:
    """The text of another column that belongs to the prompt; empty where the row has none."""
    value = row.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise PromptError(
            f"{where}: {column} belongs to the prompt and holds {shown(value)}; expected a text. Name the prompt's "
            f"column alone as FILE#{main}."
        )
    return value.strip("\n") if value and value.strip() else ""


def _check_whole(texts: Sequence[str], where: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])
            raise PromptError(
                f"{where} holds half of a character ({half}), as where a text was cut within one. Complete it or "
                "leave the row out."
            ) from error


def _qualified(origin: str, name: object) -> str:
    """``origin/name``, or the name alone where it says its origin already (``HumanEval/0``)."""
    return writable(str(name) if "/" in str(name) else f"{origin}/{name}")

"""Rows of a JSON file that is one value: a list of rows, an object around one, an object of columns, or a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import CHAT_COLUMNS, TEXT_COLUMNS, TURNS, is_named, several_texts
from selfspec_tune.prompts.conversations import is_conversation, is_list

_AROUND_ROWS = ("data", "rows", "prompts", "examples", "questions", "instances", "items")


def rows_within(value: Any, where: str) -> list[Any]:
    """The rows that ``value`` holds, each a value of its own.

    Raises `PromptError` where several keys may hold them, and where columns differ in length.
    """
    if is_list(value) and not is_conversation(value):
        return list(value)
    if not isinstance(value, Mapping):
        return [value]
    if any(is_named(key, (*TEXT_COLUMNS, *CHAT_COLUMNS)) for key in value):
        return _of_columns(value, where) if any(_holds_prompts(*entry) for entry in value.items()) else [value]
    around = [key for key in value if is_named(key, _AROUND_ROWS) and is_list(value[key])]
    if len(around) > 1:
        raise PromptError(f"{where}: several keys could hold the prompts ({', '.join(around)}); keep one of them.")
    lists = [key for key in value if is_list(value[key])]
    alone = around or (lists if len(value) == 1 else [])
    if alone:
        return [value] if is_conversation(value[alone[0]]) else list(value[alone[0]])
    return _of_columns(value, where) if lists == list(value) else [value]


def _holds_prompts(key: str, value: Any) -> bool:
    """Whether it is a column of prompts: several texts, other than a user's turns, or a list of conversations."""
    if is_named(key, CHAT_COLUMNS):
        return is_list(value) and bool(value) and is_conversation(value[0])
    is_several = several_texts(value) or (is_list(value) and bool(value) and is_conversation(value[0]))
    return is_named(key, TEXT_COLUMNS) and not is_named(key, (TURNS,)) and is_several


def _of_columns(value: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row of each place of the columns, as of a data frame; what is no list is the same in every row."""
    lengths = {key: len(column) for key, column in value.items() if is_list(column) and not is_conversation(column)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise PromptError(
            f"{where} is one object whose lists differ in length ({found:.300}); expected a value for each prompt in "
            "each. Write a row for each prompt, as JSON lines."
        )
    rows = range(next(iter(lengths.values()), 0))
    return [{key: column[row] if key in lengths else column for key, column in value.items()} for row in rows]

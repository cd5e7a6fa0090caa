"""Rows of comma-separated text, and of text that is separated otherwise: told by its content, never guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import Row

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
STATED = re.compile(r'"?sep=(?P<separator>.)"?\n')  # Excel's first line


def read_separated(text: str, usual: str, *, where: str) -> list[Row]:
    """The rows below a header line, as column → text; an empty field is an empty text, and "NA" is "NA".

    The separator is the one of `SEPARATORS` that divides the header; ``usual`` where several do and suit every row.
    Raises `PromptError` naming the line where a row has more or fewer fields than the header.
    """
    stated = STATED.match(text)
    skipped = 1 if stated else 0
    if stated:
        text = text[stated.end() :]
    with _long_fields(len(text)):
        separator = stated["separator"] if stated else _separator(text, usual, where)
        records = _records(text, separator, where, skipped)
        _, header = next(records, (0, []))
        columns = [name.strip() for name in header]
        repeated = {name for name in columns if name and columns.count(name) > 1}
        if repeated:
            raise PromptError(f"{where} has several columns {sorted(repeated)[0]!r}; give each a name of its own.")
        rows: list[Row] = []
        for line, fields in records:
            if len(fields) != len(columns):
                raise PromptError(
                    f"{where}, line {line}: expected {_counted(len(columns))}, as the header has by "
                    f"{SEPARATORS.get(separator, repr(separator))}; found {len(fields)}. Put a text that holds "
                    'separators or line ends in double quotes ("), or give one prompt a line as .txt, or JSON lines.'
                )
            rows.append(dict(zip(columns, fields, strict=True)))
    return rows


def header_of(text: str, separator: str) -> list[str]:
    """The fields of the first record by ``separator``; none where it cannot be read."""
    try:
        _, header = next(_records(text, separator, "", 0), (0, []))
    except PromptError:
        return []
    return header


def is_even(text: str, separator: str) -> bool:
    """Whether all records have as many fields by ``separator``."""
    try:
        with _long_fields(len(text)):
            return len({len(fields) for _, fields in _records(text, separator, "", 0)}) == 1
    except PromptError:
        return False


def _separator(text: str, usual: str, where: str) -> str:
    dividing = [separator for separator in SEPARATORS if len(header_of(text, separator)) > 1]
    if len(dividing) <= 1:
        return dividing[0] if dividing else usual
    suiting = [separator for separator in dividing if is_even(text, separator)]
    if usual in (suiting or dividing):
        return usual
    if len(suiting) == 1:
        return suiting[0]
    found = " or ".join(SEPARATORS[separator] for separator in dividing)
    raise PromptError(f"{where} may be separated by {found}; write it with commas, or as JSON lines.")


def _records(text: str, separator: str, where: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Each record that is no blank line, with the number of the line on which it begins."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise PromptError(
                f'{where}, line {line}: {error}. A double quote within a quoted field is written twice ("").'
            ) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _counted(number: int) -> str:
    return "1 field" if number == 1 else f"{number} fields"


@contextmanager
def _long_fields(num_characters: int) -> Iterator[None]:
    """Fields as long as the whole text may be read, which the csv module forbids by default."""
    before = csv.field_size_limit(max(num_characters, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)

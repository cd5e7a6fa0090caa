"""Rows of a local file, read here: no host is asked, and the name means that file alone, whatever it holds."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import CHAT_COLUMNS, TEXT_COLUMNS, Row
from selfspec_tune.prompts.conversations import is_conversation, is_list
from selfspec_tune.prompts.separated import read_separated

_GZIP = b"\x1f\x8b"
_AROUND_ROWS = ("data", "rows", "prompts", "examples", "questions", "instances", "items")  # where one object holds all
# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Where files were joined, a mark also stands at the beginning of a line.
_MARKS_OF_LINES = re.compile("^\ufeff+", re.MULTILINE)


def read_file(path: Path, kind: str) -> list[Row]:
    """Every row of a file of one of `READERS`' kinds, gzipped or not, as column → value.

    Text is UTF-8, or what its byte-order mark says. Raises `PromptError` that says where a file cannot be read.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return READERS[kind](data, path) if data else []


def _parquet_rows(data: bytes, path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    return rows


def _text_rows(data: bytes, path: Path) -> list[Row]:
    lines = _decoded(data, path).removesuffix("\n").split("\n")
    other = _what_else([line for line in lines if line.strip()])
    if other:
        raise PromptError(f"{path} holds {other}, whose lines are no prompts; give the file that suffix.")
    return [{"text": line} for line in lines]


def _what_else(lines: list[str]) -> str | None:
    """What the lines of a text file are, where they are rows of another kind of file."""
    if not lines:
        return None
    if all(line.startswith("{") for line in lines) and _is_object(lines[0]):
        return "JSON lines (.jsonl)"
    for separator, suffix in {"\t": ".tsv", ",": ".csv", ";": ".csv", "|": ".csv"}.items():
        fields = [field.strip(' "').lower() for field in lines[0].split(separator)]
        known = set(fields) & {*TEXT_COLUMNS, *CHAT_COLUMNS}
        if len(fields) > 1 and known and all(line.count(separator) >= len(fields) - 1 for line in lines):
            return f"a table with a column {min(known)} ({suffix})"
    return None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _separated_rows(data: bytes, path: Path) -> list[Row]:
    usual = "\t" if ".tsv" in path.name.lower() else ","
    return read_separated(_decoded(data, path), usual, where=str(path))


def _json_rows(data: bytes, path: Path) -> list[Row]:
    """Of one value a line, or of one value that is a list of rows, an object around such a list, or a row."""
    text = _decoded(data, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values: list[Any] = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == lines[0][0]:  # else every line is a value of its own
                return _rows_of_whole(text, path)
            raise _not_json(error, f"{path}, line {number}") from error
    if len(values) == 1:
        values = _rows_within(values[0])
    return [_row(value, f"{path}, row {number}") for number, value in enumerate(values, start=1)]


def _rows_of_whole(text: str, path: Path) -> list[Row]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, str(path)) from error
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(_rows_within(value), start=1)]


def _rows_within(value: Any) -> list[Any]:
    if is_list(value) and not is_conversation(value):
        return list(value)
    if not isinstance(value, dict) or any(name in value for name in (*TEXT_COLUMNS, *CHAT_COLUMNS)):
        return [value]
    return next((list(value[name]) for name in _AROUND_ROWS if is_list(value.get(name))), [value])


def _row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if is_conversation(value):
        return {"messages": value}
    raise PromptError(f'{where} is {value!r:.60}; expected an object such as {{"prompt": "…"}}.')


def _not_json(error: Exception, where: str) -> PromptError:
    if isinstance(error, JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return PromptError(f"{where} cannot be read as json: {error.msg} at {line}column {error.colno}.")
    return PromptError(f"{where} cannot be read as json: {str(error) or type(error).__name__}.")


def _decoded(data: bytes, path: Path) -> str:
    mark, encoding = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = len(mark) + error.start
        line = data.count(b"\n", 0, place) + 1
        raise PromptError(
            f"{path} is not {encoding.upper()} text: byte 0x{data[place]:02x} at offset {place}, in line {line}. Save "
            "it as UTF-8; where it is Western European, `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW-FILE` does so."
        ) from error
    if "\0" in text:
        raise PromptError(
            f"{path} holds NUL characters, the first at offset {text.index(chr(0))}: it is UTF-16 without a byte-order "
            "mark, or no text. Save it as UTF-8; `iconv -f UTF-16LE -t UTF-8 FILE > NEW-FILE` may do so."
        )
    return _MARKS_OF_LINES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


READERS: dict[str, Callable[[bytes, Path], list[Row]]] = {
    "json": _json_rows,
    "csv": _separated_rows,
    "text": _text_rows,
    "parquet": _parquet_rows,
}

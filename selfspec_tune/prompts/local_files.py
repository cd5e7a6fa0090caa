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

from selfspec_tune.checks import how_to_convert, shown, wide_encoding
from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import Row
from selfspec_tune.prompts.kinds import AS_LINES, kind_of, read_separated, rows_within
from selfspec_tune.prompts.prompt import is_conversation

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"  # at both ends
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


def read_file(path: Path, kind: str, column: str | None = None) -> list[Row]:
    """Every row of a file of ``kind`` (json, csv, text or parquet), gzipped or not, as column → value.

    ``column``: the one asked for, if any. Text is UTF-8, or what its byte-order mark says; where its content is of
    another kind than its name, the content decides.
    Raises `PromptError` that says where a file cannot be read.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not data:
        return []
    if kind == "parquet" or data[:4] == data[-4:] == _PARQUET:
        return _parquet_rows(data, path)
    text = _decoded(data, path)
    found = kind_of(text, kind, column=column, where=str(path))
    try:
        return _READERS[found](text, path)
    except PromptError as error:
        raise PromptError(f"{error} {AS_LINES}") if kind == "text" else error from error


def _parquet_rows(data: bytes, path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    return rows


def _text_rows(text: str, path: Path) -> list[Row]:
    return [{"text": line} for line in text.removesuffix("\n").split("\n")]


def _separated_rows(text: str, path: Path) -> list[Row]:
    usual = "\t" if ".tsv" in path.name.lower() else ","
    return read_separated(text, usual, where=str(path))


def _json_rows(text: str, path: Path) -> list[Row]:
    """Of one value a line, or of one value that holds all rows."""
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
        values = rows_within(values[0], str(path))
    return [_row(value, f"{path}, row {number}") for number, value in enumerate(values, start=1)]


def _rows_of_whole(text: str, path: Path) -> list[Row]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, str(path)) from error
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(rows_within(value, str(path)), start=1)]


def _row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if is_conversation(value):
        return {"messages": value}
    raise PromptError(f'{where} is {shown(value)}; expected an object such as {{"prompt": "…"}}.')


def _not_json(error: Exception, where: str) -> PromptError:
    if isinstance(error, JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return PromptError(f"{where} cannot be read as json: {error.msg} at {line}column {error.colno}.")
    return PromptError(f"{where} cannot be read as json: {str(error) or type(error).__name__}.")


def _decoded(data: bytes, path: Path) -> str:
    mark, encoding = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", "utf-8"))
    if not mark and 0 in data:
        wide = wide_encoding(data)
        what = f"it is {wide} without a byte-order mark" if wide else "it is no text, or damaged"
        how = (
            f"Save it as UTF-8; {how_to_convert(wide)} does so." if wide else "Get it again, or save it as UTF-8 text."
        )
        raise PromptError(f"{path} holds NUL bytes, the first at offset {data.index(0)}: {what}. {how}")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = len(mark) + error.start
        line = data.count(b"\n", 0, place) + 1
        raise PromptError(
            f"{path} is not {encoding.upper()} text: byte 0x{data[place]:02x} at offset {place}, in line {line}. Save "
            f"it as UTF-8; where it is Western European, {how_to_convert('WINDOWS-1252')} does so."
        ) from error
    if "\0" in text:
        raise PromptError(f"{path} holds NUL characters: it is no text, or damaged. Get it again.")
    return _MARKS_OF_LINES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


_READERS: dict[str, Callable[[str, Path], list[Row]]] = {
    "json": _json_rows,
    "csv": _separated_rows,
    "text": _text_rows,
}

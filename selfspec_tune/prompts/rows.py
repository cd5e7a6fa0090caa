"""Where rows lie: local files, read here, or a hub data set, read through ``datasets``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from selfspec_tune.errors import PromptError
from selfspec_tune.files import writable
from selfspec_tune.prompts.columns import Row
from selfspec_tune.prompts.local_files import read_file

# File suffix -> the kind that `read_file` is told.
FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
}
# What packs files in a way that is not read here -> what unpacks them.
_PACKED = {
    ".zip": "unzip",
    ".zst": "zstd -d",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".lz4": "lz4 -d",
    ".7z": "7z x",
    ".tar": "tar xf",
    ".tgz": "tar xf",
}
SPLIT_PREFERENCE = ("test", "validation", "train")
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[^:#]+))?(:(?P<split>[^:#]+))?")


@dataclass(frozen=True, slots=True)
class RowSource:
    """A local file or folder (``path``) or a hub data set (``hub_id``), and the column asked for, if any."""

    path: Path | None = None
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path or self.hub_id)

    @property
    def origin(self) -> str:
        """What prompt ids start with: the file's or data set's own name."""
        name = self.name.rsplit("/", 1)[-1]
        return writable(name.split(".")[0] or name)

    @property
    def files(self) -> list[RowSource]:
        """The place itself, or a place for each of a folder's files, by name.

        Raises `PromptError` where a folder cannot be read, or holds no files of a known kind or of several kinds.
        """
        if self.path is None or not self.path.is_dir():
            return [self]
        known = [path for path in _within(self.path) if path.is_file() and _format(path)]
        kinds = sorted({str(_format(path)) for path in known})
        if len(kinds) != 1:
            what = f"files of several kinds ({', '.join(kinds)})" if kinds else "no prompt files itself"
            raise PromptError(
                f"{self.path} is a folder and holds {what}; expected {', '.join(FORMATS)}, all of one kind."
            )
        return [replace(self, path=_readable(path)) for path in known]

    @property
    def unread(self) -> list[str]:
        """What else a folder holds: sub-folders, and files of other kinds. Names with a dot in front do not count."""
        if self.path is None or not self.path.is_dir():
            return []
        others = [path for path in _within(self.path) if not (path.is_file() and _format(path))]
        return [f"{path.name}/" if path.is_dir() else path.name for path in others]


def _within(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PromptError(f"{folder} cannot be read: {error.strerror or error}.") from error


def parse_row_source(text: str) -> RowSource | None:
    """``PATH[#COLUMN]`` or ``OWNER/NAME[:CONFIG[:SPLIT]][#COLUMN]``; None if it can be neither.

    A path is the name of that file or folder alone: no character has a meaning in it, but the last ``#`` where there is
    no file of the whole name. Raises `PromptError` for a file of an unknown kind, or a path that does not exist.
    """
    if not text:
        raise PromptError("The prompt source is empty; give a preset, a file or a hub data set.")
    if _exists(text):
        return RowSource(path=_readable(_path(text)))
    body, _, column = text.rpartition("#")
    if _exists(body):
        return RowSource(path=_readable(_path(body)), column=column)
    body, hash_sign, column = text.partition("#")
    if _format(Path(body)) or body.startswith((".", "/", "~")):
        raise PromptError(f"There is no file {body:.300}; check the path.")
    hub = _HUB.fullmatch(body)
    if hub is None:
        return None
    return RowSource(hub_id=hub["id"], config=hub["config"], split=hub["split"], column=column if hash_sign else None)


def names_a_path(text: str) -> bool:
    """Whether there is a file or folder of exactly this name, with or without ``#COLUMN``."""
    return _exists(text) or _exists(text.rpartition("#")[0])


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _format(path: Path) -> str | None:
    unpacked = path.with_suffix("") if path.suffix.lower() in (".gz", *_PACKED) else path
    return FORMATS.get(unpacked.suffix.lower())


def _readable(path: Path) -> Path:
    if path.is_dir():
        return path
    if not path.is_file():
        raise PromptError(f"{path} is no regular file; give the prompts in a file or folder.")
    packed = path.suffix.lower()
    if packed in _PACKED:
        raise PromptError(
            f"{path} is packed ({packed}), and only .gz is unpacked here: `{_PACKED[packed]} {path}` first."
        )
    if _format(path) is None:
        raise PromptError(f"{path}: unknown kind of file; expected one of {', '.join(FORMATS)}.")
    return path


def read_rows(place: RowSource) -> list[Row]:
    """Every row of the place, as column → value. Raises `PromptError` if it cannot be read."""
    return read_file(place.path, str(_format(place.path)), place.column) if place.path else _read_hub(place)


def _read_hub(place: RowSource) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(place.hub_id, place.config, split=place.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptError(
            f"The hub data set {place.hub_id} cannot be loaded: {_first_line(error)} "
            "Without a network, download the set elsewhere and give its file "
            "(PRESET:PATH reads a preset's own columns)."
        ) from error
    if isinstance(loaded, dict):
        loaded = loaded[_preferred_split(list(loaded))]
    return list(loaded)


def _preferred_split(names: Sequence[str]) -> str:
    return next(name for name in chain(SPLIT_PREFERENCE, names) if name in names)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return (lines[0] if lines else type(cause).__name__).rstrip(".") + "."

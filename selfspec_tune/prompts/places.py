"""Where rows lie, a local file or a hub data set, and reading them through ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.leftovers import TemporaryFolder
from selfspec_tune.prompts.columns import Row

# File suffix -> the builder of ``datasets`` that reads it.
FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
}
SPLIT_PREFERENCE = ("test", "validation", "train")
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[^:#]+))?(:(?P<split>[^:#]+))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A local file (``path``) or a hub data set (``hub_id``), and the column asked for, if any."""

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
        return self.name.rsplit("/", 1)[-1].split(".")[0]


def parse_place(text: str) -> Place | None:
    """``PATH[#COLUMN]`` or ``OWNER/NAME[:CONFIG[:SPLIT]][#COLUMN]``; None if it can be neither.

    Raises `PromptError` for a file of an unknown kind, a folder, or a path that does not exist.
    """
    if not text:
        raise PromptError("The prompt source is empty; give a preset, a file or a hub data set.")
    if Path(text).expanduser().exists():
        return Place(path=_readable(Path(text).expanduser()))
    body, hash_sign, column = text.partition("#")
    asked = column if hash_sign else None
    path = Path(body).expanduser()
    if path.exists():
        return Place(path=_readable(path), column=asked)
    if _format(path) or body.startswith((".", "/", "~")):
        raise PromptError(f"There is no file {body}; check the path.")
    hub = _HUB.fullmatch(body)
    if hub is None:
        return None
    return Place(hub_id=hub["id"], config=hub["config"], split=hub["split"], column=asked)


def _format(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _readable(path: Path) -> Path:
    if path.is_dir():
        raise PromptError(f"{path} is a folder; give one of the files in it.")
    if _format(path) is None:
        raise PromptError(f"{path}: unknown kind of file; expected one of {', '.join(FORMATS)}.")
    return path


def read_rows(place: Place) -> list[Row]:
    """Every row of the place, as column → value. Raises `PromptError` if it cannot be read."""
    return _read_file(place.path) if place.path else _read_hub(place)


def _read_file(path: Path) -> list[Row]:
    if path.stat().st_size == 0:
        return []
    import datasets

    options: dict[str, Any] = {"sep": "\t"} if ".tsv" in path.suffixes else {}
    options |= {"data_files": str(path), "split": "train", "streaming": True}
    try:
        with TemporaryFolder("selfspec-prompts-") as cache:
            return list(datasets.load_dataset(str(_format(path)), cache_dir=str(cache), **options))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptError(f"{path} cannot be read as {_format(path)}: {_first_line(error)}") from error


def _read_hub(place: Place) -> list[Row]:
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

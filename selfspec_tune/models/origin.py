"""Where a model's name leads: an embedded model, a directory, a GGUF file or the hub.

Looks at names and at this machine's files only: no torch, no network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from selfspec_tune.errors import ModelAccessError, UnknownModelError
from selfspec_tune.models import aliases, default_model

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: what the user asked for.
        id: the hub id, or the path as it was given.
        source: "embedded", "local", "gguf" or "hub".
        location: directory, file or hub id to load from.
        provenance: one line for the project's files; empty where only loading tells.
    """

    name: str
    id: str
    source: str
    location: str
    provenance: str = ""


def find_origin(name: str) -> Origin:
    """Resolve a name: alias, then existing directory, then GGUF file, then hub id.

    Raises:
        UnknownModelError: it is none of these.
        ModelAccessError: it is the embedded model, which was not fetched yet.
    """
    alias = aliases.resolve(name)
    if alias is not None:
        return _embedded(name) if alias.embedded else Origin(name, alias.hub_id, "hub", alias.hub_id)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _local(name, path.resolve())
    if path.is_file():
        return _gguf(name, path.resolve())
    if _HUB_ID.match(name) and path.suffix.lower() != ".gguf":
        return Origin(name, name, "hub", name)
    raise _unknown(name)


def _embedded(name: str) -> Origin:
    directory = default_model.installed_directory()
    if directory is None:
        raise ModelAccessError(
            f"The embedded model {name!r} has not been fetched to {default_model.checkpoint_directory()}: "
            f"run `{default_model.FETCH_COMMAND}` once (about 100 MB), or set "
            f"{default_model.CACHE_VARIABLE} to the cache that holds it."
        )
    return Origin(name, aliases.DEFAULT_MODEL, "embedded", str(directory), default_model.PROVENANCE)


def _local(name: str, directory: Path) -> Origin:
    if (directory / "config.json").is_file():
        return Origin(name, name, "local", str(directory), "local directory")
    weights = sorted(directory.glob("*.gguf"))
    hint = f"Give the file itself: {weights[0]}" if weights else "Give the directory that holds it."
    raise UnknownModelError(f"The directory {name!r} is no model: it has no config.json. {hint}")


def _gguf(name: str, path: Path) -> Origin:
    if path.suffix.lower() == ".gguf":
        return Origin(name, name, "gguf", str(path))
    raise UnknownModelError(
        f"The file {name!r} is no model: expected a .gguf file, or the directory that holds config.json."
    )


def _unknown(name: str) -> UnknownModelError:
    close = aliases.close_aliases(name)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return UnknownModelError(
        f"Unknown model {name!r}: it is no alias, no directory or .gguf file here, and no hub id (org/name). "
        f"{hint}`selfspec-tune models` lists the aliases."
    )

"""Where a model's name leads: an embedded model, a directory, a GGUF file or the hub.

Looks at names and at this machine's files only: no torch, no network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from selfspec_tune.errors import ModelAccessError, UnknownModelError, UsageError
from selfspec_tune.models import aliases, default_model
from selfspec_tune.models.model_files import begins_like_gguf, read_config, stated_context

ADAPTER = "adapter_config.json"
ADAPTER_ALONE = (
    "holds an adapter (PEFT) and no model. Merge it into its base model first (merge_and_unload of peft, then "
    "save_pretrained with the base's tokenizer), and give the merged directory."
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: what the user asked for.
        id: the hub id, or the path as it was given.
        source: "embedded", "local", "gguf" or "hub".
        location: directory, file or hub id to load from.
        provenance: one line for the project's files; empty where only loading tells.
        revision: branch, tag or commit of a hub id; None: the hub's default.
    """

    name: str
    id: str
    source: str
    location: str
    provenance: str = ""
    revision: str | None = None


def find_origin(name: str, revision: str | None = None) -> Origin:
    """Resolve a name: alias, then existing directory, then GGUF file, then hub id, of which ``revision`` is one.

    Raises:
        UnknownModelError: it is none of these.
        ModelAccessError: it is the embedded model, which was not fetched yet.
        UsageError: a revision is asked for of what is not on the hub.
    """
    origin = _found(name)
    if revision is not None and origin.source != "hub":
        raise UsageError(
            f"`revision` {revision}: {name!r} is a model on this machine, which has no revisions. Leave it out, or "
            "give a hub id."
        )
    return replace(origin, revision=revision)


def stated_context_length(name: str, revision: str | None = None) -> int | None:
    """What the model's config.json says, where it is on this machine; None where it is not, or says nothing.

    Raises as `find_origin` does.
    """
    from huggingface_hub import try_to_load_from_cache

    origin = find_origin(name, revision)
    if origin.source == "gguf":
        return None
    file: object = Path(origin.location) / "config.json"
    if origin.source == "hub":
        file = try_to_load_from_cache(origin.location, "config.json", revision=revision)
    return stated_context(read_config(Path(file))) if isinstance(file, str | Path) else None


def _found(name: str) -> Origin:
    alias = aliases.resolve(name)
    if alias is not None:
        return _embedded(name) if alias.embedded else Origin(name, alias.hub_id, "hub", alias.hub_id)
    path = os.path.expanduser(name)  # these functions, unlike Path's, take names that no file can have
    if os.path.isdir(path):
        return _local(name, Path(path).resolve())
    if os.path.isfile(path):
        return _gguf(name, Path(path))
    if os.path.islink(path):
        raise UnknownModelError(f"{name!r} is a link to a file that is not there: {os.readlink(path)}. Fetch it again.")
    if _is_hub_id(name) and not path.lower().endswith(".gguf"):
        return Origin(name, name, "hub", name)
    raise _unknown(name)


def _is_hub_id(name: str) -> bool:
    """Whether the hub could have a model of this name; its oldest ones, such as gpt2, have no owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


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
    if (directory / ADAPTER).is_file():
        raise UnknownModelError(f"The directory {name!r} {ADAPTER_ALONE}")
    weights = sorted(directory.glob("*.gguf"))
    hint = f"Give the file itself: {weights[0]}" if weights else "Give the directory that holds it."
    raise UnknownModelError(f"The directory {name!r} is no model: it has no config.json. {hint}")


def _gguf(name: str, path: Path) -> Origin:
    """A file by its name as it was given: in the hub's cache that is a link, and what it leads to has no suffix."""
    if path.suffix.lower() == ".gguf" or begins_like_gguf(path):
        return Origin(name, name, "gguf", str(path.absolute()))
    raise UnknownModelError(
        f"The file {name!r} is no model: expected a .gguf file, or the directory that holds config.json."
    )


def _meant(name: str) -> str | None:
    """What to give instead of a name as other tools write it: a URL, one with a revision or with a quantisation."""
    address = re.fullmatch(r"(?:https?://[^/]+/|hf://|hf:|huggingface:)(?:models/)?(.+?)/*", name)
    if address:
        parts = address[1].partition("?")[0].partition("#")[0].split("/")
        hub_id, rest = "/".join(parts[:2]), parts[2:]
        if rest and rest[-1].lower().endswith(".gguf"):
            return f"Download that file, and give it: hf download {hub_id} {rest[-1]}"
        revision = f" `revision` {unquote(rest[1])}" if len(rest) > 1 and rest[0] in ("tree", "blob", "resolve") else ""
        return f"Give the hub id: `model` {hub_id}{revision}" if _is_hub_id(hub_id) else None
    plain, at, revision = name.partition("@")
    if at and revision and (_is_hub_id(plain) or aliases.resolve(plain)):
        return f"Give the revision apart: `model` {plain} `revision` {revision}"
    plain, colon, tag = name.partition(":")
    if colon and re.fullmatch(r"[\w.-]+", tag) and (_is_hub_id(plain) or aliases.resolve(plain)):
        return (
            f"{tag} reads like a quantisation or a tag, as ollama and llama.cpp write it. Download the GGUF file of it "
            f"and give that file, or give a hub id alone, as {plain}."
        )
    return None


def _unknown(name: str) -> UnknownModelError:
    if meant := _meant(name):
        return UnknownModelError(f"{name!r} is no model's name. {meant}")
    close = aliases.close_aliases(name)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return UnknownModelError(
        f"Unknown model {name!r}: it is no alias, no directory or .gguf file here, and no hub id, such as org/name. "
        f"{hint}`selfspec-tune models` lists the aliases."
    )

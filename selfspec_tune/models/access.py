"""Turns what transformers and the hub's client raise into messages that say what to do."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selfspec_tune.checks import shown
from selfspec_tune.errors import (
    FileFormatError,
    ModelAccessError,
    SelfSpecError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from selfspec_tune.models.aliases import close_aliases
from selfspec_tune.models.broken_files import find_fault
from selfspec_tune.models.model_files import is_lfs_pointer, read_config
from selfspec_tune.models.origin import ADAPTER, ADAPTER_ALONE, Origin
from selfspec_tune.models.own_code import explain_own_code
from selfspec_tune.models.sublayers import WHAT_WORKS
from selfspec_tune.models.weights import packed_tensor, unstated

_NO_NETWORK = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError, HfHubHTTPError)


def can_ask_hub() -> bool:
    """Whether trying the hub makes sense: its client retries for half a minute where it has no address."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():  # the proxy resolves the name
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def explain_load_failure(origin: Origin, error: Exception, *, hub_was_asked: bool) -> SelfSpecError:
    """The project's error for one that transformers raised while it loaded a checkpoint."""
    causes = tuple(_causes(error))
    text = " ".join(str(cause) for cause in causes)
    if origin.source == "hub" and (explained := _explain_hub(origin, causes, hub_was_asked)):
        return explained
    if "safetensors" in text and re.search("no file named|not appear to have a file named", text):
        return _no_safetensors(origin)
    if "trust_remote_code" in text:
        return UsageError(
            f"The model {origin.name!r} brings its own Python code, which is not run unless asked. "
            "Read that code, then pass `trust_remote_code`."
        )
    if "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        kind = read_config(_folder(origin) / "config.json").get("model_type")
        return UnsupportedModelError(
            f"The model {origin.name!r} is no decoder-only language model that transformers {version('transformers')} "
            f"knows: its config.json states the model_type {shown(kind)}. {WHAT_WORKS}."
        )
    if explained := explain_own_code(origin.name, error, text):
        return explained
    return _broken(origin, error, text)


def _broken(origin: Origin, error: Exception, text: str) -> SelfSpecError:
    reason = _first_line(error)
    pointers = sorted(file.name for file in Path(origin.location).glob("*") if is_lfs_pointer(file))
    if pointers:
        return FileFormatError(
            f"The model {origin.name!r} at {origin.location} is a clone without its large files: {pointers[0]} is a "
            "pointer of Git LFS. Fetch them: git lfs pull."
        )
    folder = _folder(origin)
    if "ignore_mismatched_sizes" in text and (packed := packed_tensor(folder)):
        return unstated(origin.name, packed)
    if fault := find_fault(folder):
        return FileFormatError(f"The model {origin.name!r} cannot be loaded. {fault}")
    if missing := next((cause for cause in _causes(error) if isinstance(cause, ImportError)), None):
        return UsageError(
            f"The model {origin.name!r} asks for what is not installed here. It says: “{_first_line(missing)}”. "
            "Install that, or change what asks for it in its config.json."
        )
    if origin.source == "hub" and "does not appear to have a file named config.json" in text:
        known = "it has no config.json; it may hold GGUF files, or an adapter, alone"
    elif "ignore_mismatched_sizes" in text:
        known = "its weights have other shapes than its config.json states"
    elif "tokenizer" in reason:
        known = "it has no tokenizer that transformers can read; a tokenizer.json is expected"
    else:
        return FileFormatError(
            f"The model {origin.name!r} at {origin.location} cannot be loaded. Its files may be corrupt or incomplete: "
            f"get them again; or they are made for another release of transformers than {version('transformers')}. "
            f"It says: “{reason}”"
        )
    return FileFormatError(
        f"The model {origin.name!r} at {origin.location} cannot be loaded: {known}. "
        "Its files may be corrupt or incomplete: get them again."
    )


def _folder(origin: Origin) -> Path:
    """Where the files lie; of a hub id that is not in the cache, where nothing lies."""
    if origin.source != "hub":
        return Path(origin.location)
    config = try_to_load_from_cache(origin.location, "config.json", revision=origin.revision)
    return Path(config).parent if isinstance(config, str) else Path(origin.location)


def _explain_hub(origin: Origin, causes: tuple[BaseException, ...], hub_was_asked: bool) -> SelfSpecError | None:
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return ModelAccessError(
            f"The model {origin.name!r} is gated: the hub gives {origin.location} only to accounts that "
            "accepted its licence. Accept it on the model's page, then run `hf auth login`."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        close = close_aliases(origin.name)
        hint = f"Did you mean {', '.join(close)}? " if close else ""
        return UnknownModelError(
            f"The hub shows no model {origin.location!r}. {hint}Check the spelling; "
            "if it is private, run `hf auth login`."
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return UnknownModelError(
            f"The hub's {origin.location} has no revision {origin.revision!r}. Give a branch, a tag or a whole commit "
            "hash."
        )
    if isinstance(try_to_load_from_cache(origin.location, ADAPTER, revision=origin.revision), str):
        return UnknownModelError(f"The model {origin.name!r} {ADAPTER_ALONE}")
    missing = not hub_was_asked and isinstance(causes[0], OSError)
    if missing or any(isinstance(cause, _NO_NETWORK) or _is_transport_error(cause) for cause in causes):
        is_kept = (Path(constants.HF_HUB_CACHE) / f"models--{origin.location}").is_dir()
        if "/" not in origin.location and not is_kept:  # a name that may have been meant as an alias or a file
            close = close_aliases(origin.name)
            hint = f"Did you mean {', '.join(close)}? " if close else ""
            return UnknownModelError(
                f"Unknown model {origin.name!r}: it is no alias, no directory or .gguf file here, and no hub id in the "
                f"cache, and the hub cannot be asked. {hint}`selfspec-tune models` lists the aliases."
            )
        if files := _cached_gguf_files(origin):
            return UnknownModelError(
                f"The model {origin.name!r} is kept here as GGUF files alone. Give the file itself: {files[0]}"
            )
        revision = f", revision {origin.revision}" if origin.revision else ""
        return ModelAccessError(
            f"The model {origin.name!r} ({origin.location}{revision}) is not on this machine, or not wholly, and the "
            "hub cannot be asked. Give a local directory or a .gguf file instead, point HF_HOME to a cache "
            "that holds it, or unset HF_HUB_OFFLINE and try again with network."
        )
    return None


def _cached_gguf_files(origin: Origin) -> list[Path]:
    try:
        folder = snapshot_download(origin.location, revision=origin.revision, local_files_only=True)
    except (OSError, ValueError):
        return []
    return sorted(Path(folder).rglob("*.gguf"))


def _no_safetensors(origin: Origin) -> SelfSpecError:
    folder = Path(origin.location)
    if (folder / ADAPTER).is_file():
        return UnknownModelError(f"The directory {origin.name!r} {ADAPTER_ALONE}")
    if files := sorted(folder.glob("*.gguf")):
        return UnknownModelError(
            f"The directory {origin.name!r} has GGUF files and no safetensors weights. Give the file itself: {files[0]}"
        )
    return UsageError(
        f"The model {origin.name!r} has no safetensors weights at {origin.location}; other formats can run "
        "code when they are loaded. Use a safetensors version, or pass `allow_pickle` if you trust it."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and everything it was raised from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_transport_error(error: BaseException) -> bool:
    """Whether the hub's HTTP client raised it; the client has changed, so it is told by its module."""
    return type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))


def _first_line(error: Exception) -> str:
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    line = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first.rstrip()
    return line if line.endswith((".", "!", "?")) else f"{line}."

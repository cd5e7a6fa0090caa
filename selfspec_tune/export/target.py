"""Where the weights of an export's target lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfspec_tune.errors import ModelAccessError
from selfspec_tune.leftovers import TemporaryFolder
from selfspec_tune.models.config_file import read_config
from selfspec_tune.models.origin import Origin, find_origin


@contextmanager
def checkpoint_folder(name: str, revision: str | None = None) -> Iterator[Path]:
    """The directory of the checkpoint that ``name`` leads to; a GGUF file is unpacked for as long as this lasts.

    ``revision``: branch, tag or commit of a hub id. Raises `UnknownModelError`, `ModelAccessError`,
    `UnsupportedModelError`, or `FileFormatError` where its config.json states nonsense.
    """
    origin = find_origin(name, revision)
    if origin.source == "gguf":
        with TemporaryFolder("selfspec-export-") as unpacked:
            _unpack(Path(origin.location), unpacked)
            yield unpacked
    else:
        folder = _of_hub(origin) if origin.source == "hub" else Path(origin.location)
        read_config(folder / "config.json")
        yield folder


def gguf_of(name: str) -> Path | None:
    """The GGUF file that ``name`` is; None for anything else."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.isfile(path) and find_origin(name).source == "gguf" else None


def _unpack(file: Path, folder: Path) -> None:
    import torch

    from selfspec_tune.models.gguf_file import load_gguf

    model, tokenizer, _ = load_gguf(file, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _of_hub(origin: Origin) -> Path:
    """The snapshot in the hub's cache, fetched where that is allowed."""
    from huggingface_hub import snapshot_download

    from selfspec_tune.models.access import can_ask_hub, explain_load_failure

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        is_offline, revision = not can_ask_hub(), origin.revision
        return Path(
            snapshot_download(origin.location, revision=revision, local_files_only=is_offline, allow_patterns=wanted)
        )
    except ModelAccessError:
        raise
    except Exception as error:
        raise explain_load_failure(origin, error, hub_was_asked=can_ask_hub()) from error

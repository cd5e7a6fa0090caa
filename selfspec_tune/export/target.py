"""Where the weights of an export's target lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfspec_tune.errors import ModelAccessError
from selfspec_tune.leftovers import TemporaryFolder
from selfspec_tune.models.origin import Origin, find_origin


@contextmanager
def checkpoint_folder(name: str) -> Iterator[Path]:
    """The directory of the checkpoint that ``name`` leads to; a GGUF file is unpacked for as long as this lasts.

    Raises `UnknownModelError`, `ModelAccessError` or `UnsupportedModelError`.
    """
    origin = find_origin(name)
    if origin.source == "gguf":
        with TemporaryFolder("selfspec-export-") as folder:
            _unpack(Path(origin.location), folder)
            yield folder
    elif origin.source == "hub":
        yield _of_hub(origin)
    else:
        yield Path(origin.location)


def gguf_of(name: str) -> Path | None:
    """The GGUF file that ``name`` is; None for anything else."""
    path = Path(os.path.expanduser(name))
    return path if path.is_file() and path.suffix.lower() == ".gguf" else None


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
        return Path(snapshot_download(origin.location, local_files_only=not can_ask_hub(), allow_patterns=wanted))
    except ModelAccessError:
        raise
    except Exception as error:
        raise explain_load_failure(origin, error, hub_was_asked=can_ask_hub()) from error

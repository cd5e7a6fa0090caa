"""Checkpoints found on this machine, and read and written tensor by tensor: a model need not fit into memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import FileFormatError, ModelAccessError, UnsupportedModelError
from selfspec_tune.files import read_settings, storage_error, write_json_atomic
from selfspec_tune.models.model_files import read_config
from selfspec_tune.models.origin import Origin, find_origin
from selfspec_tune.temporary import TemporaryFolder

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 1 << 30
PLACEHOLDER = "CHECKPOINT"  # in lines, for the target's checkpoint in Hugging Face's format
# What a tokenizer, a chat template and generation need, where the checkpoint has them.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
FILES = frozenset({"config.json", WEIGHTS, INDEX, *BESIDE})
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_COMPUTED = ".rotary_emb.inv_freq"  # that old checkpoints store; every loader computes it anew
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and number format (as safetensors names it) of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * _WIDTHS.get(self.dtype, 1)


class Checkpoint:
    """A directory with config.json and safetensors weights, one file or several; nothing is read until asked for.

    Raises `FileFormatError` where it has no such weights or they are incomplete, `UnsupportedModelError` where
    they are quantised: what is packed cannot be taken apart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_settings(own_file(folder, "config.json"))
        if quantization := self.config.get("quantization_config"):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise UnsupportedModelError(
                f"The weights of {folder} are quantised ({method}): "
                "only plain float weights can be taken apart. Export from the checkpoint that it was made from."
            )
        self.tensors: dict[str, TensorInfo] = {}
        for file in _weight_files(folder):
            self.tensors |= {name: info for name, info in _headers(file).items() if not name.endswith(_COMPUTED)}
        missing = {name for name in _indexed(folder) if not name.endswith(_COMPUTED)} - set(self.tensors)
        if missing:
            raise FileFormatError(
                f"{folder / INDEX} names tensors that no file holds ({', '.join(sorted(missing)[:3])}). "
                "Get the checkpoint again."
            )

    def read(self, name: str) -> Tensor:
        """One tensor. Raises `FileFormatError` where the checkpoint lacks it."""
        from safetensors import safe_open

        if name not in self.tensors:
            raise FileFormatError(f"{self.folder} has no tensor {name}. Get the checkpoint again.")
        with safe_open(self.tensors[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def beside(self) -> Iterator[Path]:
        """Files that a tokenizer and generation read. Raises `FileFormatError` where a link leads out of the folder."""
        for name in BESIDE:
            if (self.folder / name).is_file():
                yield own_file(self.folder, name)


def write_checkpoint(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], config: Mapping[str, Any], *, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write config.json and ``tensors`` in files of up to ``shard_bytes``; the bytes of all weights.

    Holds no more than one file's tensors at a time. Raises `StorageError`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal size
        file = folder / f"shard-{len(shards)}.safetensors"
        save_file(held, file, metadata={"format": "pt"})
        shards.append((file, list(held)))
        held.clear()
        size = 0

    try:
        for name, tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            if held and size + num_bytes > shard_bytes:
                flush()
            held[name] = tensor.contiguous()
            size += num_bytes
            total += num_bytes
        flush()
        _name_shards(folder, shards, total)
    except OSError as error:
        raise storage_error(folder, error) from error
    except SafetensorError as error:  # a full disk, as it reports it
        raise storage_error(folder, OSError(str(error))) from error
    write_json_atomic(folder / "config.json", config)
    return total


def is_checkpoint_file(name: str) -> bool:
    """Whether a file of this name may be one that a checkpoint written here holds."""
    return name in FILES or _SHARD.fullmatch(name) is not None


def _name_shards(folder: Path, shards: list[tuple[Path, list[str]]], total: int) -> None:
    if len(shards) == 1:
        shards[0][0].rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(shards, 1):
        target = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        file.rename(target)
        weight_map |= dict.fromkeys(names, target.name)
    write_json_atomic(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _indexed(folder: Path) -> dict[str, str]:
    """The file of each tensor by the index; empty where all are in one file, which goes first as in transformers."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).exists():
        return {}
    found = read_settings(own_file(folder, INDEX)).get("weight_map", {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise FileFormatError(f"{folder / INDEX} names no file for each tensor in its weight_map. Get it again.")
    return found


def _weight_files(folder: Path) -> list[Path]:
    if names := set(_indexed(folder).values()):
        files = [folder / name for name in sorted(names)]
        outside = [file for file in files if file.parent != folder]
        if outside:
            raise FileFormatError(f"{folder / INDEX} names a file outside its folder: {outside[0]}.")
    else:
        files = [folder / WEIGHTS]
    absent = [file.name for file in files if not os.path.isfile(file)]
    if absent:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        hint = (
            "its pickled weights are never read: save it again with safe_serialization=True"
            if pickled
            else "get the checkpoint again"
        )
        raise FileFormatError(f"{folder} lacks {', '.join(absent)}; {hint}.")
    return [own_file(folder, file.name) for file in files]


def own_file(folder: Path, name: str) -> Path:
    """A file of a model. Links are followed within its folder and into a hub's cache, which keeps its files as blobs.

    Raises `FileFormatError` for a link that leads anywhere else: what lies there would be copied into an export.
    """
    file = folder / name
    real = Path(os.path.realpath(file))
    is_blob = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if not is_blob and not real.is_relative_to(os.path.realpath(folder)):
        raise FileFormatError(
            f"{file} is a link to {real}, outside the model's folder, and is not copied into an export. Put the file "
            "itself there if it belongs to the model."
        )
    return file


def _headers(file: Path) -> dict[str, TensorInfo]:
    from safetensors import SafetensorError, safe_open

    try:
        with ExitStack() as stack:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {name: TensorInfo(tuple(s.get_shape()), s.get_dtype(), file) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{file} is no complete safetensors file ({error}). Get it again.") from error


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


def named_in_lines(name: str) -> str:
    """How servers find the model: they load a checkpoint, not the GGUF file that a draft may be made from."""
    origin = find_origin(name)
    return PLACEHOLDER if origin.source == "gguf" else origin.location


def _unpack(file: Path, folder: Path) -> None:
    import torch

    from selfspec_tune.models.gguf import load_gguf

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

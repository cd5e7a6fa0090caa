"""GGUF files read lazily and written tensor by tensor, and such a file as the model that a draft is made from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SkipSetError
from selfspec_tune.export.job import Target
from selfspec_tune.files import storage_error
from selfspec_tune.models.generation_settings import own_settings
from selfspec_tune.models.model_files import open_gguf
from selfspec_tune.models.origin import find_origin
from selfspec_tune.results import SkipConfig

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
    from numpy.typing import NDArray

_SAMPLING = {  # the file's keys, which llama.cpp follows, by the names of a generation_config
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}  # of general.file_type


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """A metadata value, with the types that it is stored as."""

    value: Any
    kind: Any
    of: Any = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to write: its rows as they are stored, made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    num_bytes: int
    make: Callable[[], NDArray[Any]]


class GgufFile:
    """The metadata and the tensors of a language model's GGUF file. Raises `FileFormatError` for anything else."""

    def __init__(self, path: Path) -> None:
        self._reader: GGUFReader = open_gguf(path)
        try:
            self.entries = {
                name: MetadataEntry(field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
                for name, field in self._reader.fields.items()
                if not name.startswith("GGUF.")
            }
        except (ValueError, IndexError, KeyError) as error:
            raise FileFormatError(f"The metadata of {path} is damaged ({error}). Get it again.") from error
        self.path = path
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def architecture(self) -> str:
        """What llama.cpp builds the model by."""
        return str(self.value("general.architecture"))

    def value(self, name: str, default: Any = None) -> Any:
        """A metadata value. Raises `FileFormatError` where it is absent and there is no default."""
        if name in self.entries:
            return self.entries[name].value
        if default is None:
            raise FileFormatError(f"{self.path} lacks the key {name}. Get the file again.")
        return default

    def own(self, name: str, default: Any = None) -> Any:
        """The value of the architecture's key ``name``, as "block_count"."""
        return self.value(f"{self.architecture}.{name}", default)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.own("block_count"))

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key heads, and the size of a head."""
        heads = int(self.own("attention.head_count"))
        heads_kv = int(self.own("attention.head_count_kv", heads))
        return heads, heads_kv, int(self.own("attention.key_length", int(self.own("embedding_length")) // heads))

    def of_layer(self, layer: int) -> dict[str, ReaderTensor]:
        """A layer's tensors by their name within it."""
        prefix = f"blk.{layer}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def outside(self) -> dict[str, ReaderTensor]:
        """Tensors of no layer."""
        return {name: tensor for name, tensor in self.tensors.items() if not _BLOCK.fullmatch(name)}

    def piece(
        self,
        name: str,
        tensor: ReaderTensor,
        weights: str,
        order: Callable[[NDArray[Any]], NDArray[Any]] = lambda rows: rows,
    ) -> Piece:
        """``tensor`` under another name, its rows in another ``order``; in the number format ``weights``.

        What has one dimension, norms and biases, keeps its format: llama.cpp wants these in float32.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quantize

        shape = tuple(int(size) for size in reversed(tensor.shape))
        if weights == "copy" or len(shape) == 1:
            return Piece(name, shape, tensor.tensor_type, int(tensor.n_bytes), lambda: order(tensor.data))
        kind = GGMLQuantizationType[weights.upper()]
        num_bytes = int(tensor.n_elements) * (4 if weights == "f32" else 2)
        return Piece(
            name, shape, kind, num_bytes, lambda: quantize(dequantize(order(tensor.data), tensor.tensor_type), kind)
        )


def full(name: str, shape: tuple[int, ...], value: float) -> Piece:
    """A float32 tensor of one value."""
    import numpy as np
    from gguf import GGMLQuantizationType

    array = np.full(shape, value, dtype=np.float32)
    return Piece(name, shape, GGMLQuantizationType.F32, array.nbytes, lambda: array)


def write_gguf_file(
    path: Path, architecture: str, entries: Mapping[str, MetadataEntry], pieces: list[Piece], weights: str
) -> int:
    """Write a file with ``entries`` and ``pieces``, holding one tensor at a time; the bytes of all tensors.

    Raises `StorageError`.
    """
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    for name, entry in entries.items():
        # The writer aligns by a rule of its own, and has no empty lists.
        if name not in ("general.architecture", "general.alignment") and entry.value != []:
            writer.add_key_value(name, entry.value, entry.kind, entry.of)
    if weights in _FILE_TYPES:
        writer.kv_data[0].pop("general.file_type", None)
        writer.add_key_value("general.file_type", _FILE_TYPES[weights], GGUFValueType.UINT32)
    for piece in pieces:
        # A float dtype says that the shape counts elements, not packed bytes; the type is the raw one.
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), piece.num_bytes, raw_dtype=piece.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for piece in pieces:
            writer.write_tensor_data(piece.make())
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        writer.close()
    return sum(piece.num_bytes for piece in pieces)


@dataclass(frozen=True)
class GgufTarget(Target):
    """The target's GGUF file, at ``path``."""

    path: Path

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "gguf": str(self.path.absolute())}

    @property
    def in_lines(self) -> str:
        return str(self.path)

    @property
    def num_layers(self) -> int:
        return self.opened.num_layers

    @property
    def own_settings(self) -> dict[str, Any]:
        entries = self.opened.entries
        return own_settings({name: entries[key].value for name, key in _SAMPLING.items() if key in entries})

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def opened(self) -> GgufFile:
        """Its metadata and tensors. Raises `FileFormatError`."""
        return GgufFile(self.path)

    def fingerprint(self, config: SkipConfig | None) -> str | None:
        """That of the model that was searched: it is of other bytes than these."""
        return config.model.fingerprint if config else None

    def check(self, skip_set: SkipSet, config: SkipConfig | None) -> None:
        """That the file holds as many weights as the model that was searched; its depth is checked on writing."""
        stated = config.model.parameters if config else None
        if config is None or stated is None:
            return
        tensors = self.opened.tensors
        found = sum(int(tensor.n_elements) for name, tensor in tensors.items() if not name.startswith("rope_"))
        head = tensors.get("output.weight")  # which a file may hold beside an embedding that it is tied to
        if stated not in (found, found - (int(head.n_elements) if head is not None else 0)):
            raise SkipSetError(
                f"{self.path} holds {found} weights; {config.model.id}, which was searched, has {stated}. Give the "
                "GGUF file of that model."
            )


def gguf_of(name: str) -> Path | None:
    """The GGUF file that ``name`` is; None for anything else."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.isfile(path) and find_origin(name).source == "gguf" else None

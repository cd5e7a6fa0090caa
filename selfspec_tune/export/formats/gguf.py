"""Drafts for llama.cpp, made from the target's own GGUF file.

Whole layers keep the target's architecture. A layer that lacks its attention or its MLP needs the architecture
``deci``, in the encodings that llama.cpp computes as meant:

- without MLP: an FFN 32 wide of zeros. ``n_ff = 0`` is accepted, and silently leaves the attention out as well;
- without attention: both head counts 0 and no tensors; the first layer of a model cannot be without one, so there it
  has one head of zeros.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.formats.gguf_file import GgufFile, MetadataEntry, Piece, full, write_gguf_file
from selfspec_tune.export.job import Job, Written
from selfspec_tune.export.layout import LayerBlock, partial

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "draft.gguf"
_DECI = "deci"
# Architectures that deci's graph computes, with the order of a head's rotary halves that their files have.
_INTERLEAVED = {"llama": True, "qwen2": False}
# Architectures whose layers compute the same at any place, so that a file of fewer is one of them. Others have windows,
# rotations or scales by place or by number of layers, which files do not say.
_ALIKE = frozenset(
    {
        "llama",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "gemma",
        "granite",
        "olmo",
        "olmo2",
        "phi2",
        "phi3",
        "gpt2",
        "gptneox",
        "falcon",
        "starcoder",
        "starcoder2",
        "stablelm",
        "internlm2",
        "bloom",
        "mpt",
        "nemotron",
        "orion",
        "codeshell",
        "exaone",
    }
)
_EMPTY_FFN = 32  # columns of an MLP that adds nothing: llama.cpp multiplies matrices of at least a block
_ATTENTION = frozenset({"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"})
_MLP = frozenset({"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"})
_BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "block_count")


def write_gguf(job: Job, folder: Path, final: Path) -> Written:
    """``draft.gguf``.

    Raises `SkipSetError` where the file has another depth, `UnsupportedModelError` where it holds what neither
    architecture computes.
    """
    assert job.gguf is not None
    source = GgufFile(job.gguf)
    if source.num_layers != job.skip_set.num_layers:
        raise SkipSetError(
            f"{job.gguf} has {source.num_layers} layers, the skip set is for a model of {job.skip_set.num_layers}. "
            "Give the GGUF file of the model that was searched."
        )
    blocks = job.blocks
    _check_alike(source)
    _check_joined(source, blocks)
    is_native = not partial(blocks)
    architecture = source.architecture if is_native else _DECI
    entries = _native_entries(source, blocks) if is_native else _deci_entries(source, blocks)
    pieces = list(_pieces(source, blocks, job.weights, is_native=is_native))
    size = write_gguf_file(folder / FILE, architecture, entries, pieces, job.weights)
    line = (
        f"llama-server -m {shlex.quote(str(job.gguf))} -md {shlex.quote(str(final / FILE))} --spec-type draft-simple "
        f"--spec-draft-n-max {job.draft_tokens} --spec-draft-p-min {job.exit_threshold:g} {job.sampling.llamacpp}"
    )
    return Written(size, {"llama.cpp": line}, settings={"exit_threshold": job.exit_threshold})


def _check_alike(source: GgufFile) -> None:
    """That a layer computes the same at another place."""
    kind = source.architecture
    has_window = kind != "phi3" and source.own("attention.sliding_window", 0)  # which llama.cpp has turned off for phi3
    if kind not in _ALIKE or has_window:
        reason = "looks back over a window" if kind in _ALIKE else f"is of the architecture {kind}, not known otherwise"
        raise UnsupportedModelError(
            f"{source.path} {reason}: llama.cpp may compute its layers by their place, and with fewer it would "
            "compute others. Use `to` hf-draft or `to` nas for another runtime."
        )


def _check_joined(source: GgufFile, blocks: list[LayerBlock]) -> None:
    """That blocks which are no layer of the source can be built from its halves."""
    if all(block.attention == block.mlp for block in blocks):
        return
    strangers = {name.split(".")[0] for name in source.of_layer(0)} - _ATTENTION - _MLP
    if strangers or source.architecture not in _INTERLEAVED:
        reason = f"its layers have {', '.join(sorted(strangers)[:3])}" if strangers else "its graph is another"
        raise UnsupportedModelError(
            f"{source.path} is of the architecture {source.architecture}, whose attentions and MLPs cannot be left out "
            f"singly in llama.cpp: {reason}. Expected {' or '.join(_INTERLEAVED)}; or skip whole layers."
        )


def _native_entries(source: GgufFile, blocks: list[LayerBlock]) -> dict[str, MetadataEntry]:
    """The source's metadata; what it lists by layer follows the blocks."""
    entries = dict(source.entries)
    for name, entry in source.entries.items():
        if (
            isinstance(entry.value, list)
            and len(entry.value) == source.num_layers
            and name.startswith(f"{source.architecture}.")
        ):
            layers = [block.mlp if "feed_forward" in name else block.attention for block in blocks]
            entries[name] = MetadataEntry([entry.value[layer or 0] for layer in layers], entry.kind, entry.of)
    name = f"{source.architecture}.block_count"
    return entries | {name: MetadataEntry(len(blocks), entries[name].kind)}


def _deci_entries(source: GgufFile, blocks: list[LayerBlock]) -> dict[str, MetadataEntry]:
    from gguf import GGUFValueType as Kind

    def by_layer(values: list[int]) -> MetadataEntry:
        return MetadataEntry(values, Kind.ARRAY, Kind.INT32)

    prefix = f"{source.architecture}."
    entries = {}
    for name, entry in source.entries.items():
        own = name.removeprefix(prefix)
        if own == name:
            entries[name] = entry
        elif own not in _BY_LAYER:
            entries[f"{_DECI}.{own}"] = entry
    heads, heads_kv, size = _heads(source)
    counts = [_head_counts(number, block, heads, heads_kv) for number, block in enumerate(blocks)]
    inner = int(source.own("feed_forward_length"))
    return entries | {
        f"{_DECI}.block_count": MetadataEntry(len(blocks), Kind.UINT32),
        f"{_DECI}.vocab_size": MetadataEntry(int(source.tensors["token_embd.weight"].shape[1]), Kind.UINT32),
        f"{_DECI}.attention.key_length": MetadataEntry(size, Kind.UINT32),
        f"{_DECI}.attention.value_length": MetadataEntry(size, Kind.UINT32),
        f"{_DECI}.rope.dimension_count": MetadataEntry(int(source.own("rope.dimension_count", size)), Kind.UINT32),
        f"{_DECI}.rope.freq_base": MetadataEntry(float(source.own("rope.freq_base", 10000.0)), Kind.FLOAT32),
        f"{_DECI}.attention.head_count": by_layer([count for count, _ in counts]),
        f"{_DECI}.attention.head_count_kv": by_layer([count for _, count in counts]),
        f"{_DECI}.feed_forward_length": by_layer([_EMPTY_FFN if b.mlp is None else inner for b in blocks]),
    }


def _heads(source: GgufFile) -> tuple[int, int, int]:
    """Query heads, key heads, and the size of a head."""
    heads = int(source.own("attention.head_count"))
    heads_kv = int(source.own("attention.head_count_kv", heads))
    size = int(source.own("attention.key_length", int(source.own("embedding_length")) // heads))
    return heads, heads_kv, size


def _head_counts(number: int, block: LayerBlock, heads: int, heads_kv: int) -> tuple[int, int]:
    if block.attention is not None:
        return heads, heads_kv
    return (1, 1) if number == 0 else (0, 0)


def _pieces(source: GgufFile, blocks: list[LayerBlock], weights: str, *, is_native: bool) -> Iterator[Piece]:
    for name, tensor in source.outside.items():
        yield source.piece(name, tensor, weights)
    for number, block in enumerate(blocks):
        prefix = f"blk.{number}."
        if block.attention == block.mlp:
            assert block.attention is not None
            found = source.of_layer(block.attention)
        else:
            found = {} if block.attention is None else _half(source, block.attention, _ATTENTION)
            found |= {} if block.mlp is None else _half(source, block.mlp, _MLP)
        for name, tensor in found.items():
            order = _same if is_native else _order(source, name)
            yield source.piece(prefix + name, tensor, weights, order)
        if block.mlp is None:
            yield from _empty_ffn(source, prefix)
        if block.attention is None and number == 0:
            yield from _empty_attention(source, prefix)


def _half(source: GgufFile, layer: int, names: frozenset[str]) -> dict[str, Any]:
    return {name: tensor for name, tensor in source.of_layer(layer).items() if name.split(".")[0] in names}


def _same(rows: NDArray[Any]) -> NDArray[Any]:
    return rows


def _order(source: GgufFile, name: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """deci rotates neighbouring rows of a head; where the source rotates its halves, queries and keys are reordered."""
    heads, heads_kv, _ = _heads(source)
    part = name.split(".")[0]
    if _INTERLEAVED[source.architecture] or part not in ("attn_q", "attn_k"):
        return _same
    count = heads if part == "attn_q" else heads_kv

    def interleave(rows: NDArray[Any]) -> NDArray[Any]:
        halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    return interleave


def _empty_ffn(source: GgufFile, prefix: str) -> Iterator[Piece]:
    width = int(source.own("embedding_length"))
    yield full(f"{prefix}ffn_norm.weight", (width,), 1.0)
    yield full(f"{prefix}ffn_gate.weight", (_EMPTY_FFN, width), 0.0)
    yield full(f"{prefix}ffn_up.weight", (_EMPTY_FFN, width), 0.0)
    yield full(f"{prefix}ffn_down.weight", (width, _EMPTY_FFN), 0.0)


def _empty_attention(source: GgufFile, prefix: str) -> Iterator[Piece]:
    width, size = int(source.own("embedding_length")), _heads(source)[2]
    yield full(f"{prefix}attn_norm.weight", (width,), 1.0)
    for name in ("attn_q", "attn_k", "attn_v"):
        yield full(f"{prefix}{name}.weight", (size, width), 0.0)
    yield full(f"{prefix}attn_output.weight", (width, size), 0.0)

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
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import FileFormatError, SkipSetError, UnsupportedModelError, UsageError
from selfspec_tune.export.blocks import LayerBlock, partial
from selfspec_tune.export.format import AGAIN, ExportFormat, Written
from selfspec_tune.export.formats.gguf_file import (
    GgufFile,
    GgufTarget,
    MetadataEntry,
    Piece,
    full,
    gguf_of,
    write_gguf_file,
)
from selfspec_tune.export.job import Job, stated_model
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import GGUF_WEIGHTS, ExportRequest, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import MANIFEST, ExportManifest, SkipConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from selfspec_tune.export.runtimes.completion import Runtime, TimedRuntime
    from selfspec_tune.export.simulation import Simulation
    from selfspec_tune.models import LoadedModel

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


class Gguf(ExportFormat[GgufTarget]):
    """``draft.gguf``, made from the target's GGUF file."""

    name = "gguf"
    about = "llama.cpp; made from the target's GGUF file"
    made_from = "a GGUF file"
    options = frozenset({"gguf", "weights"})
    files = frozenset({FILE})
    runtime = RuntimeName.LLAMACPP

    def check(self, request: ExportRequest) -> None:
        super().check(request)
        if request.weights not in (None, *GGUF_WEIGHTS):
            raise UsageError(f"`weights` {request.weights}: expected {', '.join(GGUF_WEIGHTS)}.")

    def target(self, request: ExportRequest, config: SkipConfig | None, stack: ExitStack) -> GgufTarget:
        file = request.gguf or gguf_of(request.model or (config.model.id if config else ""))
        model = stated_model(request, config, file)
        if file is None:
            raise UsageError(
                f"`to` {self.name} takes tokenizer and weights from the GGUF file that llama.cpp serves: give it with "
                "`gguf` FILE."
            )
        return GgufTarget(model, file)

    def write(self, job: Job[GgufTarget], folder: Path, final: Path) -> Written:
        """``draft.gguf``.

        Raises `SkipSetError` where the file has another depth, `UnsupportedModelError` where it holds what neither
        architecture computes.
        """
        source, depth = job.target.opened, job.skip_set.num_layers
        if source.num_layers != depth:
            raise SkipSetError(
                f"{source.path} has {source.num_layers} layers, the skip set is for a model of {depth}. Give the GGUF "
                "file of the model that was searched."
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
            f"llama-server -m {shlex.quote(job.target.in_lines)} -md {shlex.quote(str(final / FILE))} "
            f"--spec-type draft-simple --spec-draft-n-max {job.draft_tokens} --spec-draft-p-min "
            f"{job.exit_threshold:g} {job.sampling.llamacpp}"
        )
        return Written(size, {"llama.cpp": line}, settings={"exit_threshold": job.exit_threshold})

    def require_runtime(self) -> None:
        from selfspec_tune.export.runtimes.llamacpp import library

        library()

    def pair(self, loaded: LoadedModel, folder: Path, manifest: ExportManifest) -> tuple[Runtime, Simulation]:
        from selfspec_tune.export.runtimes.llamacpp import LlamaCppPair
        from selfspec_tune.export.simulation import server_loop

        tokens = manifest.draft_tokens
        pair = LlamaCppPair(Path(manifest.target[0]), folder / FILE, tokens)
        return pair, server_loop(loaded, manifest.skip_set(), tokens, first_is_plain=True)

    def timed(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> TimedRuntime:
        from selfspec_tune.export.runtimes.llamacpp import TimedLlamaCpp

        if manifest.gguf is None:
            raise FileFormatError(f"{request.folder / MANIFEST} names no GGUF file. {AGAIN}")
        return TimedLlamaCpp(
            request,
            Path(manifest.gguf),
            request.folder / FILE,
            draft_tokens=manifest.draft_tokens,
            exit_threshold=manifest.exit_threshold,
        )


FORMAT = Gguf()


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
    """That blocks which are no layer of the source can be built from its sub-layers."""
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
    heads, heads_kv, size = source.heads
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
            found = {} if block.attention is None else _sublayer(source, block.attention, _ATTENTION)
            found |= {} if block.mlp is None else _sublayer(source, block.mlp, _MLP)
        for name, tensor in found.items():
            order = _same if is_native else _order(source, name)
            yield source.piece(prefix + name, tensor, weights, order)
        if block.mlp is None:
            yield from _empty_ffn(source, prefix)
        if block.attention is None and number == 0:
            yield from _empty_attention(source, prefix)


def _sublayer(source: GgufFile, layer: int, names: frozenset[str]) -> dict[str, Any]:
    return {name: tensor for name, tensor in source.of_layer(layer).items() if name.split(".")[0] in names}


def _same(rows: NDArray[Any]) -> NDArray[Any]:
    return rows


def _order(source: GgufFile, name: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """deci rotates neighbouring rows of a head; where the source rotates its halves, queries and keys are reordered."""
    heads, heads_kv, _ = source.heads
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
    width, size = int(source.own("embedding_length")), source.heads[2]
    yield full(f"{prefix}attn_norm.weight", (width,), 1.0)
    for name in ("attn_q", "attn_k", "attn_v"):
        yield full(f"{prefix}{name}.weight", (size, width), 0.0)
    yield full(f"{prefix}attn_output.weight", (width, size), 0.0)

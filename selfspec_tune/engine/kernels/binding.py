"""The compiled kernels as ctypes sees them; the structures mirror those of the C sources."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint32, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from selfspec_tune.engine.kernels.build import Built, built
from selfspec_tune.errors import NativeUnavailableError

ABI_VERSION = 5  # kernels_abi(0) of the C sources: changes with any function's arguments
MAX_TOKENS = 32  # of one pass
MAX_HEAD_SIZE = 512
MAX_EXPERTS = 1024
INT4_GROUP = 32  # inputs that share one scale
UNIT = 16  # rows that are computed together
LOWEST = -1e30  # below every logit: what is left of a row where no logit is a number


class WeightFormat(IntEnum):
    """How a weight is stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3


class Best(ctypes.Structure):
    """A row of logits' most probable token, its logit, and the logarithm of the sum of exp(logit).

    Where they are asked for, the second highest logit and the entropy; else 0.
    """

    _fields_ = (("token", c_int64), *((name, c_float) for name in ("logit", "log_sum", "second", "entropy")))


class Kind(IntEnum):
    """Which kind of sub-layer."""

    ATTENTION = 0
    MLP = 1
    EXPERTS = 2


class Linear(ctypes.Structure):
    """One weight [rows, cols] with its scales and bias, both float32 and possibly null."""

    _fields_ = (
        ("format", c_int32),
        ("has_centre", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
    )


class HeadStruct(ctypes.Structure):
    """The head's first rows, and those of ``ids`` past them: ascending, as many as ``others`` has rows."""

    _fields_ = (("first", Linear), ("others", Linear), ("ids", c_void_p))


class NormStruct(ctypes.Structure):
    """A norm; all zeros: none. ``weight`` and ``bias`` are float32 and possibly null."""

    _fields_ = (
        ("kind", c_int32),
        ("is_late", c_int32),
        ("epsilon", c_float),
        ("weight", c_void_p),
        ("bias", c_void_p),
    )


class RopeTable(ctypes.Structure):
    """Cosines and signed sines, float32 [capacity, size], of the first ``size`` dimensions of a head."""

    _fields_ = (("cosine", c_void_p), ("signed_sine", c_void_p), ("size", c_int64))


class AttentionStruct(ctypes.Structure):
    """What an attention does between its linear layers; see `AttentionPlan`. 0: no ``cap``, no ``clip``.

    ``rope``, ``growth``, ``bias``: numbers of tables, or -1. ``sinks``: float32 [heads], or null.
    """

    _fields_ = (
        *((name, c_int32) for name in ("heads", "kv_heads", "size", "is_grouped")),
        *((name, c_int32) for name in ("reach", "reach_size")),
        *((name, c_int32) for name in ("rope", "is_adjacent", "is_rope_float")),
        *((name, c_int32) for name in ("qk_norm", "is_qk_norm_late")),
        *((name, c_int32) for name in ("growth", "bias", "rounds_scores")),
        *((name, c_float) for name in ("scale", "cap", "clip")),
        ("query_norm", NormStruct),
        ("key_norm", NormStruct),
        ("sinks", c_void_p),
    )


class ActivationStruct(ctypes.Structure):
    """An activation function; ``numbers`` are those of xIELU."""

    _fields_ = (("kind", c_int32), ("numbers", c_float * 4))


class MlpStruct(ctypes.Structure):
    """What an MLP does between its linear layers."""

    _fields_ = (("is_gated", c_int32), ("activation", ActivationStruct))


class ExpertsStruct(ctypes.Structure):
    """A mixture of experts; see `ExpertsPlan`. ``shared_…``: the MLP for every token, where there is one."""

    _fields_ = (
        *((name, c_int32) for name in ("count", "chosen", "is_sigmoid", "is_chosen_first")),
        *((name, c_int32) for name in ("groups", "kept_groups")),
        *((name, c_int32) for name in ("is_renormalised", "rounds_logits", "rounds_weights")),
        *((name, c_int32) for name in ("has_shared", "has_shared_weight")),
        *((name, c_float) for name in ("least_sum", "sum_epsilon", "scale")),
        ("activation", ActivationStruct),
        ("shared_activation", ActivationStruct),
        ("choice_bias", c_void_p),
        ("width", c_int64),
        *((name, Linear) for name in ("router", "gate_up", "down")),
        *((name, Linear) for name in ("shared_gate", "shared_up", "shared_down", "shared_weight")),
    )


class SubLayerStruct(ctypes.Structure):
    """Attention: fused qkv, output and a gate or none. MLP: gate, up and down; plain: input, none, output.

    A parallel MLP reads what the attention of its layer read, where that ran in the same pass.
    """

    _fields_ = (
        ("kind", c_int32),
        ("layer", c_int32),
        ("is_parallel", c_int32),
        ("residual_scale", c_float),
        *((name, NormStruct) for name in ("norm", "post", "inner")),
        *((name, Linear) for name in ("first", "second", "third")),
        ("attention", AttentionStruct),
        ("mlp", MlpStruct),
        ("experts", c_void_p),
    )


class Model(ctypes.Structure):
    """Sizes (the largest of all layers) and the tensors that all sub-layers share. 0: no ``logit_cap``."""

    _fields_ = (
        ("is_bf16", c_int32),
        ("threads", c_int32),
        *((name, c_int64) for name in ("hidden", "heads", "kv_heads", "head_size", "widest", "vocabulary", "capacity")),
        *((name, c_int64) for name in ("experts", "chosen", "expert_width", "shared_width")),
        ("embedding", c_void_p),
        ("positions", c_void_p),
        *((name, c_float) for name in ("embedding_scale", "logit_scale", "logit_cap")),
        ("embedding_norm", NormStruct),
        ("final_norm", NormStruct),
        ("ropes", c_void_p),
        ("tables", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


# What kernels_abi(0), kernels_abi(1), … must be.
_STRUCTURES = (Linear, SubLayerStruct, ExpertsStruct, Model, Best, HeadStruct)
ABI = (ABI_VERSION, *(ctypes.sizeof(structure) for structure in _STRUCTURES))


_UNLOADABLE = (OSError, AttributeError)  # no library, and a function that it lacks


def load_library() -> Any:
    """The kernels.

    Raises `NativeUnavailableError`, and `UsageError` where the level asked for is none of this processor.
    """
    return _loaded()[0]


def status() -> str:
    """One line for a person: which kernels there are and how good, or why there are none."""
    try:
        return _loaded()[1].describe()
    except NativeUnavailableError as error:
        return f"no native kernels: {error}"


@cache
def _loaded() -> tuple[Any, Built]:
    unloadable: set[Path] = set()  # made elsewhere, for another C library
    while True:
        kernels = built(ABI, unloadable=frozenset(unloadable))
        try:
            return _opened(kernels.path), kernels
        except _UNLOADABLE as error:
            if kernels.path in unloadable:  # and built anew it is no better
                raise NativeUnavailableError(f"the built kernels could not be loaded ({error})") from error
            unloadable.add(kernels.path)


def _opened(path: Path) -> Any:
    """The library at a path. Raises what `_UNLOADABLE` names."""
    library = ctypes.CDLL(str(path))
    library.kernels_abi.argtypes, library.kernels_abi.restype = [c_int32], c_int64
    found = tuple(library.kernels_abi(which) for which in range(len(ABI)))
    if found != ABI:
        raise OSError(f"its interface is {found}, not {ABI}")
    library.engine_new.argtypes, library.engine_new.restype = [POINTER(Model)], c_void_p
    library.engine_free.argtypes, library.engine_free.restype = [c_void_p], None
    library.engine_run.argtypes = [
        *(c_void_p, c_void_p, c_int64),
        *(POINTER(HeadStruct), c_void_p, c_int64, c_int64, c_void_p, c_int32, c_void_p),
    ]
    library.engine_run.restype = None
    library.dequantise.argtypes, library.dequantise.restype = [POINTER(Linear), c_void_p, c_int32, c_int32], None
    library.pack_codebook.argtypes = [
        *(c_void_p, c_int32, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    ]
    library.pack_codebook.restype = None
    library.read_all.argtypes, library.read_all.restype = [c_void_p, c_int64, c_int32], c_uint32
    return library

"""The compiled kernels as ctypes sees them; the structures mirror those of the C sources."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from selfspec_tune.engine.kernels.build import Built, built
from selfspec_tune.errors import NativeUnavailableError

ABI_VERSION = 1  # kernels_abi(0) of the C sources: changes with any function's arguments
MAX_TOKENS = 32  # of one pass
MAX_HEAD_SIZE = 512
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
    """A row of logits' most probable token, its logit, and the logarithm of the sum of exp(logit)."""

    _fields_ = (("token", c_int64), ("logit", c_float), ("log_sum", c_float))


class Kind(IntEnum):
    """Which kind of sub-layer."""

    ATTENTION = 0
    MLP = 1


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


class SubLayerStruct(ctypes.Structure):
    """Attention: fused qkv and output, and the ``scale`` of its scores. MLP: gate, up and down.

    ``norm`` is float32, and ``epsilon`` the norm's.
    """

    _fields_ = (
        ("kind", c_int32),
        ("layer", c_int32),
        ("epsilon", c_float),
        ("scale", c_float),
        ("norm", c_void_p),
        ("first", Linear),
        ("second", Linear),
        ("third", Linear),
    )


class Model(ctypes.Structure):
    """Sizes and the tensors that all sub-layers share."""

    _fields_ = (
        ("is_bf16", c_int32),
        ("threads", c_int32),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("widest", c_int64),
        ("vocabulary", c_int64),
        ("capacity", c_int64),
        ("epsilon", c_double),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("cosine", c_void_p),
        ("signed_sine", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


# What kernels_abi(0), kernels_abi(1), … must be.
ABI = (ABI_VERSION, *(ctypes.sizeof(structure) for structure in (Linear, SubLayerStruct, Model, Best)))


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
        *(POINTER(Linear), c_void_p, c_int64, c_int64, c_void_p, c_void_p),
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

"""Headers of GGUF files, read quickly, and the scaling of rotary positions that they state.

gguf's own reader takes seconds for a vocabulary, and transformers asks it for the configuration, the weights and the
tokenizer anew.

llama.cpp divides the frequencies by a factor (linear), or by YaRN's rule, or by a tensor of factors, which its
converter computes from Llama 3's rule. Its defaults and formulas are those of its `llama_context` and ``rope_yarn``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType

from selfspec_tune.errors import UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FACTORS = "rope_freqs.weight"
_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
_COMPLETE = frozenset({"gemma4"})  # of these transformers knows the factors itself
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192  # of Llama 3.1 and later
_CLOSE = 1e-4  # relative; the factors are stored in float32


class QuickReader(GGUFReader):
    """The same fields and tensors; arrays, as vocabularies are, are read at once and not value by value."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        of, start = GGUFValueType(int(kind[0])), orig_offs + 12
        if of == GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        values, end = (
            self._strings(start, int(length[0]))
            if of == GGUFValueType.STRING
            else self._numbers(start, int(length[0]), self.gguf_scalar_to_np[of])
        )
        parts = [kind, length, *values]
        types = [GGUFValueType.ARRAY, of] if values else [GGUFValueType.ARRAY]
        return end - orig_offs, parts, list(range(2, len(parts))), types

    def _strings(self, start: int, count: int) -> tuple[list[Any], int]:
        end = start
        plain: Any = np.asarray(self.data)  # slices of it cost a tenth of those of a memory map
        buffer, values = memoryview(plain), list[Any]()
        for _ in range(count):
            (length,) = struct.unpack_from("=Q", buffer, end)
            values.append(plain[end + 8 : end + 8 + length])
            end += 8 + length
        return values, end

    def _numbers(self, start: int, count: int, kind: type[np.generic]) -> tuple[list[Any], int]:
        size = np.dtype(kind).itemsize
        if start + count * size > len(self.data):
            raise ValueError(f"an array of {count} values goes beyond its end")
        values = np.asarray(self.data)[start : start + count * size].view(kind)
        return list(values.reshape(-1, 1)), start + count * size


def value_of(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """A metadata value, as plain Python; ``default`` where the file has no such key."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


@contextmanager
def read_quickly() -> Iterator[None]:
    """Within it transformers reads GGUF files so, and makes its table of tensor names once, not once per module."""
    names = cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=QuickReader, get_tensor_name_map=names):
        yield


def rope_scaling(reader: GGUFReader, config: Any) -> dict[str, Any]:
    """What transformers' ``config.rope_parameters`` lacks to rotate as llama.cpp does; empty where nothing.

    Raises:
        UnsupportedModelError: transformers has no rule that computes the same.
    """
    architecture = value_of(reader, "general.architecture")

    def stated(name: str, default: Any = None) -> Any:
        return value_of(reader, f"{architecture}.rope.{name}", default)

    kind = stated("scaling.type", "linear")
    factor = stated("scaling.factor") or stated("scale_linear") or 1.0
    attention = stated("scaling.attn_factor", 1.0)
    factors = None if architecture in _COMPLETE else _factors(reader)
    is_scaled = kind == "yarn" or (kind != "none" and factor != 1.0)
    if not is_scaled and factors is None and kind in ("none", "linear") and attention == 1.0:
        return {}
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in rope:
        raise _refusal(reader, "is scaled, in layers that differ")
    if factors is not None and not is_scaled and attention == 1.0:
        return _of_factors(reader, config, factors)
    if factors is None and kind == "linear" and attention == 1.0:
        return {"rope_type": "linear", "factor": factor}
    if factors is None and kind == "yarn" and stated("scaling.yarn_ext_factor", 1.0) in (-1.0, 1.0):
        original = stated("scaling.original_context_length", config.max_position_embeddings)
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        log_multiplier = stated("scaling.yarn_log_multiplier", 0.0)
        if attention != 1.0 or log_multiplier:
            yarn["attention_factor"] = _magnitude(factor, log_multiplier) * attention
        betas = {name: stated(f"scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return yarn | {name: value for name, value in betas.items() if value is not None}
    raise _refusal(reader, f"is scaled in a way that it has no rule for ({kind}, factor {factor:g})")


def _factors(reader: GGUFReader) -> NDArray[Any] | None:
    """By how much each frequency is divided; None where the file has no such tensor."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if any(name in tensors for name in _BY_LENGTH):
        raise _refusal(reader, "depends on how much context is reserved")
    if _FACTORS not in tensors:
        return None
    return np.asarray(tensors[_FACTORS].data, dtype=np.float64).reshape(-1)


def _of_factors(reader: GGUFReader, config: Any, factors: NDArray[Any]) -> dict[str, Any]:
    """Llama 3's rule with the parameters that give ``factors``."""
    if np.allclose(factors, 1.0, rtol=_CLOSE):
        return {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = float(config.rope_parameters["rope_theta"])
    wavelengths = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    factor = float(factors.max())
    if len(factors) == len(wavelengths):
        for original in _originals(factors, wavelengths):
            if np.allclose(factors, _llama3(wavelengths, factor, original), rtol=_CLOSE):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": _LOW,
                    "high_freq_factor": _HIGH,
                    "original_max_position_embeddings": original,
                }
    raise _refusal(reader, "has factors that are not those of Llama 3's rule")


def _originals(factors: NDArray[Any], wavelengths: NDArray[Any]) -> Iterator[int]:
    """Original context lengths that may stand behind ``factors``, the usual one first."""
    yield _ORIGINAL
    factor = factors.max()
    between = (factors > 1 + _CLOSE) & (factors < factor * (1 - _CLOSE))
    for one, wavelength in zip(factors[between], wavelengths[between], strict=True):
        smooth = (1 / one - 1 / factor) / (1 - 1 / factor)
        yield round((_LOW + (_HIGH - _LOW) * smooth) * wavelength)
    yield from (2**power for power in range(4, 21))


def _llama3(wavelengths: NDArray[Any], factor: float, original: int) -> NDArray[Any]:
    """The factors that llama.cpp's converter writes."""
    smooth = np.clip((original / wavelengths - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    factors: NDArray[Any] = 1 / ((1 - smooth) / factor + smooth)
    return factors


def _magnitude(factor: float, log_multiplier: float) -> float:
    """What YaRN multiplies queries and keys by."""

    def of(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    return of(1.0) / of(log_multiplier) if log_multiplier else of(1.0)


def _refusal(reader: GGUFReader, what: str) -> UnsupportedModelError:
    name = value_of(reader, "general.name", "this model")
    return UnsupportedModelError(
        f"The rotary position of {name} {what}: transformers would compute another model than llama.cpp serves. Give "
        "the original checkpoint's directory or hub id instead."
    )

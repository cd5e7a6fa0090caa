"""Reads GGUF headers quickly.

gguf's own reader takes seconds for a vocabulary, and transformers asks it for the configuration, the weights and the
tokenizer anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType


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


@contextmanager
def read_quickly() -> Iterator[None]:
    """Within it transformers reads GGUF files so, and makes its table of tensor names once, not once per module."""
    names = cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=QuickReader, get_tensor_name_map=names):
        yield

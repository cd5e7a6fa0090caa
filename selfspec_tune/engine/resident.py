"""Which memory stays resident: letting go of what was read from a file and is no longer used."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path

from torch import Tensor

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux


def let_go(tensor: Tensor) -> None:
    """Let the system take back the memory of a tensor that a file is mapped to, whole pages of it.

    A checkpoint is mapped in one piece, so the pages of a tensor stay resident after its last use.
    No content is lost: a page that is read again comes from the file again. Elsewhere than on Linux,
    and of any other memory, nothing is done: pages of no file would be written to swap first.
    """
    if tensor.device.type != "cpu" or not sys.platform.startswith("linux") or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if end > begin and _maps_a_file(begin):
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _PAGE_OUT)


def _maps_a_file(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if begin <= address < end:
            return inode != "0"
    return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)

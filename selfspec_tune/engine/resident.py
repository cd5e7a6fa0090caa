"""Where weights lie in memory: in huge pages where the system gives them, and no longer in a file's."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_HUGE_PAGE, _PAGE_OUT = 14, 21  # MADV_HUGEPAGE and MADV_PAGEOUT of Linux


def roomy(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An empty tensor for weights that every step reads, in huge pages where the system gives them.

    Reading then needs few address translations, and the processor's prefetching meets few page ends.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    _advise(tensor, _HUGE_PAGE)  # before anything is written: pages are given at the first write
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is a file mapped into memory. False elsewhere than on Linux."""
    return _is_advisable(tensor) and _maps_a_file(tensor.data_ptr())


def let_go(tensor: Tensor) -> None:
    """Let the system take back the memory of a tensor that a file is mapped to, whole pages of it.

    A checkpoint is mapped in one piece, so the pages of a tensor stay resident after its last use.
    No content is lost: a page that is read again comes from the file again. Elsewhere than on Linux,
    and of any other memory, nothing is done: pages of no file would be written to swap first.
    """
    if is_mapped(tensor):
        _advise(tensor, _PAGE_OUT)


def _is_advisable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and sys.platform.startswith("linux") and tensor.is_contiguous()


def _advise(tensor: Tensor, advice: int) -> None:
    """Tell the system what to do with the whole pages of a tensor; it may ignore that."""
    if not _is_advisable(tensor):
        return
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if end > begin:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)


def _maps_a_file(address: int) -> bool:
    with Path("/proc/self/maps").open() as mappings:  # by address; the system writes no more of them than is read
        for line in mappings:
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            begin, end = (int(bound, 16) for bound in span.split("-"))
            if address < end:
                return begin <= address and inode != "0"
    return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)

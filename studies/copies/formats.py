"""Copies of few bits as the values that they stand for: levels, scales, and GPTQ over any blocks in any order."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32  # inputs that share a scale
_ROWS = 64  # of a weight that lie side by side, as fake.c has them
_AT_ONCE = 128  # inputs after which their errors are made up for by all others
_SAMPLED = 1 << 20  # weights that levels are learnt from


class _Format(ctypes.Structure):
    _fields_ = (("levels", ctypes.c_void_p), ("count", ctypes.c_int32), ("mantissa", ctypes.c_int32))


@dataclass(frozen=True, slots=True)
class Format:
    """``levels`` ascending, in units of a group's greatest weight; ``scale_bits`` 16 (bfloat16) or 8.

    An 8-bit scale is a sign, two bits of exponent below the row's greatest and five of mantissa. (That scales lie
    further below the greatest of their row is not looked at: such groups hardly count.)
    """

    levels: Tensor
    scale_bits: int

    def structure(self) -> _Format:
        """What fake.c reads."""
        return _Format(self.levels.data_ptr(), self.levels.numel(), 7 if self.scale_bits == 16 else 5)


@cache
def _library(folder: Path) -> ctypes.CDLL:
    """fake.c, compiled in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    target, source = folder / "fake.so", Path(__file__).with_name("fake.c")
    compiler = next(found for name in ("cc", "gcc", "clang") if (found := shutil.which(name)))
    options = [
        "-O3",
        "-march=native",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fassociative-math",
        "-fno-signed-zeros",
    ]
    subprocess.run([compiler, *options, "-shared", "-fPIC", "-o", str(target), str(source), "-lm"], check=True)
    return ctypes.CDLL(str(target))


def learnt_levels(weight: Tensor, count: int) -> Tensor:
    """``count`` levels by Lloyd's algorithm on ``weight`` [outputs, inputs], each group divided by its extreme."""
    grouped = weight.flatten()[:_SAMPLED].float().view(-1, GROUP)
    extreme = grouped.gather(1, grouped.abs().argmax(1, keepdim=True))
    x = (grouped[extreme[:, 0] != 0] / extreme[extreme[:, 0] != 0]).flatten()
    levels = torch.linspace(-1 + 1 / count, 1, count)
    for _ in range(60):
        of = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
        sums, counts = torch.zeros(count).index_add_(0, of, x), torch.bincount(of, minlength=count)
        levels = torch.where(counts > 0, sums / counts.clamp(min=1), levels)
        levels[-1] = 1.0
    return levels


def values(
    weight: Tensor, kind: Format, products: Tensor, order: str, damping: float, folder: Path, *, is_plain: bool
) -> Tensor:
    """What a copy of ``weight`` [outputs, inputs] stands for, float32, by GPTQ (Frantar et al., ICLR 2023).

    Within blocks of inputs, whose mean products are ``products`` [blocks, size, size]: what comes later makes up for
    the error of each. ``order``: "inputs" takes inputs of large squares first, with scales found beforehand; "groups"
    whole groups, with scales found as each comes; "given" takes them as they lie. ``is_plain``: every weight is rounded
    by itself; products tell only what its error counts. ``folder``: where fake.c is compiled.
    """
    library, structure = _library(folder), kind.structure()
    rows, size = weight.shape[0], products.shape[1]
    lying = F.pad(weight.float(), (0, 0, 0, -rows % _ROWS)).view(-1, _ROWS, weight.shape[1]).transpose(1, 2)
    result = torch.empty_like(lying)
    batches = ctypes.c_int64(lying.shape[0])
    for start, block in zip(range(0, weight.shape[1], size), products, strict=True):
        moments = damped(block, damping)
        taken = in_order(moments.diagonal(), order)
        importance, given = moments.diagonal().contiguous(), None
        own = lying[:, start : start + size].contiguous()
        if order == "inputs":
            scales = torch.empty(lying.shape[0], size // GROUP, _ROWS)
            library.find_scales(
                _at(own), batches, ctypes.c_int64(size), _at(importance), ctypes.byref(structure), _at(scales)
            )
            given = scales.repeat_interleave(GROUP, 1)[:, taken].contiguous()
        own, importance = own[:, taken], importance[taken]
        factor = torch.eye(size) if is_plain else inverse_factor(moments[taken][:, taken])
        for at in range(0, size, _AT_ONCE):
            part = slice(at, min(at + _AT_ONCE, size))
            done, counts, ahead = (
                own[:, part].contiguous(),
                importance[part].contiguous(),
                factor[part, part].contiguous(),
            )
            fixed = None if given is None else given[:, part].contiguous()
            wrong, inputs = torch.empty_like(done), ctypes.c_int64(done.shape[1])
            pointers = _at(counts), _at(ahead), _at(fixed), ctypes.byref(structure), _at(wrong)
            library.fake(_at(done), batches, inputs, *pointers)
            own[:, part] = done
            if not is_plain:
                own[:, part.stop :] -= factor[part, part.stop :].T @ wrong
        result[:, start + taken] = own
    return result.transpose(1, 2).reshape(-1, weight.shape[1])[:rows]


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def damped(products: Tensor, damping: float) -> Tensor:
    """Mean products of inputs [inputs, inputs], a share of their mean square added to each square, and 1 on average."""
    squares = products.diagonal()
    added = damping * squares.mean().clamp(min=torch.finfo(torch.float32).tiny)
    result = products.clone()
    result.diagonal().add_(added)
    return result / result.diagonal().mean()


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse."""
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    return factor


def in_order(squares: Tensor, order: str) -> Tensor:
    """The order in which GPTQ takes inputs of such mean ``squares``."""
    if order == "inputs":
        return squares.argsort(descending=True, stable=True)
    if order == "groups":
        groups = squares.view(-1, GROUP).sum(1).argsort(descending=True, stable=True)
        return (groups[:, None] * GROUP + torch.arange(GROUP)).flatten()
    return torch.arange(squares.numel())

"""Quantisation: error bounds, and weights that lie on a grid already."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfspec_tune.engine.layers.quantize import lies_on_a_grid, quantize_asymmetric, quantize_symmetric

DTYPES = [torch.float32, torch.bfloat16]


def _weight(rows: int = 24, columns: int = 128, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _per_weight(scale: Tensor, weight: Tensor) -> Tensor:
    """Each weight's own step."""
    return scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group_size"), [(8, 128), (8, 32), (4, 32), (4, 64)])
def test_symmetric_rounding_errs_by_half_a_step(bits: int, group_size: int, dtype: torch.dtype) -> None:
    weight = _weight()
    made = quantize_symmetric(weight, bits, group_size, dtype)
    assert made.scale.dtype == made.centre.dtype == dtype
    assert made.scale.shape == (24, 128 // group_size)
    assert made.signed_codes.abs().max() == 2 ** (bits - 1) - 1
    # A scale rounded down to bfloat16 leaves the largest weight up to 2^-9 of itself outside.
    slack = 0.5 + (2**-9 * 2 ** (bits - 1) if dtype == torch.bfloat16 else 1e-3)
    assert ((made.dequantize() - weight).abs() <= slack * _per_weight(made.scale, weight)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_asymmetric_rounding_errs_by_half_a_step(group_size: int, dtype: torch.dtype) -> None:
    weight = _weight() + 3.0  # far from zero, where symmetric levels would be wasted
    made = quantize_asymmetric(weight, 4, group_size, dtype)
    step = _per_weight(made.scale, weight)
    assert int(made.codes.max()) == 15
    assert int(made.codes.min()) == 0
    # Centres of about 3 in bfloat16 lie up to 2^-8 beside the truth, and codes are chosen after that.
    slack = 0.5 if dtype == torch.float32 else 0.6
    assert ((made.dequantize() - weight).abs() <= slack * step + 2**-7 * (dtype == torch.bfloat16) + 1e-5).all()
    symmetric = quantize_symmetric(weight, 4, group_size, dtype)
    assert (made.dequantize() - weight).norm() < 0.6 * (symmetric.dequantize() - weight).norm()


def test_a_finer_group_errs_less() -> None:
    weight = _weight()
    errors = [(quantize_asymmetric(weight, 4, g, torch.float32).dequantize() - weight).norm() for g in (32, 64, 128)]
    assert errors == sorted(errors)


def test_a_group_of_one_value_is_exact() -> None:
    weight = torch.full((2, 64), 0.375)
    weight[1] = 0.0
    for made in (quantize_asymmetric(weight, 4, 32, torch.bfloat16, find_grid=True).dequantize(),):
        assert torch.equal(made, weight)
    assert torch.equal(quantize_symmetric(torch.zeros(2, 64), 8, 64, torch.float32).dequantize(), torch.zeros(2, 64))


def _four_bit(kind: str, rows: int = 64, columns: int = 256) -> Tensor:
    """A weight as a 4-bit file in groups of 32 gives it back: normal values, as in checkpoints."""
    groups = _weight(rows, columns, seed=3).view(rows, -1, 32)
    if kind == "symmetric":  # GGUF's Q4_0: the value furthest from zero is level -8
        furthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        step = (furthest / -8).half().float()
        codes = (groups / step).round().clamp(-8, 7)
        return (codes * step).view(rows, columns)
    low = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - low) / 15).half().float()
    return (((groups - low) / step).round().clamp(0, 15) * step + low).view(rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_a_four_bit_checkpoint_is_reproduced(kind: str, dtype: torch.dtype) -> None:
    weight = _four_bit(kind).to(dtype).float()
    assert lies_on_a_grid(weight, 4, 32)
    made = quantize_asymmetric(weight, 4, 32, dtype, find_grid=True)
    step = _per_weight(made.scale, weight)
    error = (made.dequantize() - weight).abs() / step
    assert error.max() < (1e-3 if dtype == torch.float32 else 0.1)
    # What the search for the grid is for: without it, groups that miss a level are resampled.
    if kind == "symmetric":
        plain = quantize_asymmetric(weight, 4, 32, dtype)
        assert (plain.dequantize() - weight).norm() > 5 * (made.dequantize() - weight).norm()


def test_other_weights_lie_on_no_grid() -> None:
    assert not lies_on_a_grid(_weight(), 4, 32)
    dithered = _four_bit("symmetric")
    step = dithered.abs().view(64, -1, 32).amax(-1).repeat_interleave(32, 1) / 8
    dithered += (torch.rand(dithered.shape, generator=torch.Generator().manual_seed(4)) - 0.5) * step
    assert not lies_on_a_grid(dithered, 4, 32)


def test_columns_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="40 columns are no multiple of the group size 32"):
        quantize_symmetric(torch.ones(2, 40), 4, 32, torch.float32)

"""Products of bfloat16 by way of float32, for processors that have none of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.cpu import LEVEL_VARIABLE, available_levels, chosen_level
from selfspec_tune.draft import Precision
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.kernels.weights import NativeCopy, rounded_inputs
from selfspec_tune.engine.layers import linear
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings
from selfspec_tune.engine.near_probe import NearProbe
from selfspec_tune.engine.runners.reference import ReferenceRunner
from tests.engine_kit import load, needs_compiler

_STEP = 2**-8  # of bfloat16, as a share of the smallest number of its binade


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "cpu_computes_bfloat16", lambda: False)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The level of most people's processors, whatever this one has besides."""
    if "x86-64-v3" not in {level.name for level in available_levels()}:
        pytest.skip("no AVX2 here")
    monkeypatch.setenv(LEVEL_VARIABLE, "x86-64-v3")
    chosen_level.cache_clear()
    yield
    chosen_level.cache_clear()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _assert_rounded(result: Tensor, exact: Tensor, largest: Tensor | float) -> None:
    """``result`` is ``exact`` rounded to bfloat16, up to one step and what float32 loses of sums up to ``largest``."""
    assert result.dtype == torch.bfloat16
    assert bool(((result.double() - exact).abs() <= _STEP * exact.abs() + 1e-6 * largest).all())


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("tokens", [5, 33, 200])
@pytest.mark.parametrize(("rows", "columns"), [(7, 24), (256, 64), (257, 96), (600, 512)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_widened_product_is_the_exact_one_rounded_once(tokens: int, rows: int, columns: int, biased: bool) -> None:
    hidden, weight = _random(tokens, columns), _random(rows, columns, seed=1)
    bias = _random(rows, seed=2) if biased else None
    exact = hidden.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    largest = hidden.double().abs() @ weight.double().abs().T
    _assert_rounded(Dense(weight, bias)(hidden), exact, largest)


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (4, 24)])
def test_a_few_tokens_are_left_to_torch(shape: tuple[int, ...]) -> None:
    hidden, weight, bias = _random(*shape), _random(40, 24, seed=1), _random(40, seed=2)
    assert torch.equal(Dense(weight, bias)(hidden), F.linear(hidden, weight, bias))


@pytest.mark.parametrize(("computes", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (False, torch.half)])
def test_all_else_is_torch_s_own(monkeypatch: pytest.MonkeyPatch, computes: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(linear, "cpu_computes_bfloat16", lambda: computes)
    hidden, weight, bias = _random(40, 96).to(dtype), _random(300, 96, seed=1).to(dtype), _random(300, seed=2).to(dtype)
    assert torch.equal(Dense(weight, bias)(hidden), F.linear(hidden, weight, bias))
    queries, keys, values = (_random(1, 2, 40, 16, seed=seed).to(dtype) for seed in range(3))
    ours = linear.attention(queries, keys, values, None, 0.25, is_causal=True)
    theirs = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=0.25)
    assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("kind", ["causal", "none", "boolean", "added"])
def test_widened_attention_is_the_exact_one_rounded_once(kind: str) -> None:
    queries, keys, values = _random(1, 4, 40, 16), _random(1, 2, 40, 16, seed=1), _random(1, 2, 40, 16, seed=2)
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    masks: dict[str, Tensor | None] = {
        "boolean": seen,
        "added": torch.zeros(40, 40, dtype=torch.bfloat16).masked_fill(~seen, -torch.inf),
    }
    ours = linear.attention(queries, keys, values, masks.get(kind), 0.25, is_causal=kind == "causal")
    exact: Any = F.scaled_dot_product_attention(
        *(tensor.double() for tensor in (queries, keys, values)),
        attn_mask=None if kind == "none" else seen,
        scale=0.25,
        enable_gqa=True,
    )
    _assert_rounded(ours, exact, float(values.abs().max()))


@needs_compiler
@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_copy_computes_with_its_values_in_float32(precision: Precision, tokens: int) -> None:
    dense = Dense(_random(300, 96, seed=1), _random(300, seed=2))
    copy = NativeCopy(dense, precision, LowBitSettings(symmetric=True))
    values = torch.empty(300, 96)
    copy._dequantise(0, values)
    hidden = _random(tokens, 96)
    read = (rounded_inputs(hidden).to(hidden.dtype) if precision is Precision.INT4 else hidden).double()
    exact = read @ values.double().T + dense.bias.double()  # type: ignore[union-attr]
    _assert_rounded(copy(hidden), exact, read.abs() @ values.double().abs().T)


@pytest.mark.usefixtures("avx2")
@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
@pytest.mark.parametrize("name", ["fast", pytest.param("native", marks=needs_compiler)])
def test_the_probe_finds_the_runners_equal_without_products_of_bfloat16(
    request: pytest.FixtureRequest, checkpoint: str, name: str
) -> None:
    directory: Path = request.getfixturevalue(checkpoint)
    loaded = load(directory, "bfloat16")
    runner = choose_runner(loaded, name)
    assert runner.name == name
    assert linear.is_widened(torch.zeros(1, dtype=torch.bfloat16))
    assert NearProbe(loaded, ReferenceRunner(loaded)).difference(runner) < 0.06

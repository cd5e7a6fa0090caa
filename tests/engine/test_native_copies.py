"""The native runner's low-precision copies: values, bytes, drafts made of them, and what happens when they go."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.kernels.weights import NativeCopy, copy_bytes, refusal
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings
from selfspec_tune.engine.layers.quantize import Meter, Moments, quantize_symmetric
from selfspec_tune.engine.runner import Want, prefill
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.errors import UnsupportedPrecisionError, UsageError
from selfspec_tune.models import LoadedModel
from tests.covering import cover
from tests.engine_kit import decode, draft_step, llama, load, needs_compiler, prompt_tokens
from tests.rounded_runner import STEP, RoundedModel, check_passes

pytestmark = needs_compiler

INT8, INT4, SAME = Precision.INT8, Precision.INT4, Precision.SAME
SETTINGS = LowBitSettings()
INT4_EVERYWHERE = DraftPrecision.parse("int4", 3)
DTYPES = [torch.float32, torch.bfloat16]


def _dense(rows: int, columns: int, dtype: torch.dtype, *, bias: bool = False) -> Dense:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight[0, :32] = 0  # a group of nothing
    weight[-1, :32] = 3  # a group of one value
    return Dense(weight.to(dtype), torch.randn(rows, generator=generator).to(dtype) if bias else None)


def _values(copy: NativeCopy, columns: int, dtype: torch.dtype) -> Tensor:
    """The weight that a copy computes with, its bias taken off."""
    nothing, unit = torch.zeros(1, columns, dtype=dtype), torch.eye(columns, dtype=dtype)
    bias = copy(nothing)
    assert bias.shape[0] == 1
    return (copy(unit) - bias if bias.any() else copy(unit)).T


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    """A float32 model of the test's own, with biases and a vocabulary that is no multiple of 16."""
    return load(llama(tmp_path, vocab_size=121, attention_bias=True, mlp_bias=True))


# -- what errors cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [256, 192, 160])
def test_a_copy_that_knows_its_inputs_errs_less_on_them(columns: int, dtype: torch.dtype) -> None:
    dense = _dense(40, columns, dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(500, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    meter = Meter(dense)
    meter.note(inputs)

    def cost(copy: NativeCopy) -> float:
        wrong = _values(copy, columns, dtype).float() - dense.weight.float()
        return float((inputs @ wrong.T).square().sum())

    told = cost(NativeCopy(dense, INT4, SETTINGS, meter.moments))
    assert told < 0.95 * cost(NativeCopy(dense, INT4, SETTINGS))


def test_inputs_that_are_all_alike_and_independent_change_nothing(dtype: torch.dtype) -> None:
    dense = _dense(33, 96, dtype)
    alike = Moments.of(4.0 * torch.eye(96)[None])
    told = NativeCopy(dense, INT4, SETTINGS, alike)
    assert torch.equal(_values(told, 96, dtype), _values(NativeCopy(dense, INT4, SETTINGS), 96, dtype))


def test_inputs_that_are_never_anything_but_zero_leave_a_copy_of_numbers() -> None:
    dense = _dense(16, 64, torch.float32)
    copy = NativeCopy(dense, INT4, SETTINGS, Moments.of(torch.zeros(1, 64, 64)))
    assert bool(_values(copy, 64, torch.float32).isfinite().all())


def test_moments_are_those_of_the_model_s_own_layers(loaded: LoadedModel) -> None:
    runner = NativeRunner(loaded)
    tokens = [token % 121 for token in prompt_tokens(60, 5)]
    layer, seen = loaded.model.base_model.layers[1].mlp.down_proj, []  # type: ignore[union-attr, index]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))  # type: ignore[union-attr]
    with torch.inference_mode():
        loaded.model(torch.tensor([tokens]))
    handle.remove()
    expected = seen[0][8:].square().mean(0)  # without a text's first tokens
    found = runner.input_moments(tokens)[runner.mlp(1).projections[1]]
    torch.testing.assert_close(found.mean_squares, expected, rtol=0.02, atol=0.02 * float(expected.mean()))


def test_making_copies_keeps_what_is_cached(loaded: LoadedModel) -> None:
    runner, prompt = NativeRunner(loaded), [token % 121 for token in prompt_tokens(40, 2)]
    prefill(runner, prompt)
    expected = decode(runner, 7)
    runner.rewind(40)
    runner.set_draft(Draft(SkipSet.empty(runner.num_layers), precision=INT4_EVERYWHERE))
    assert runner.length == 40
    torch.testing.assert_close(decode(runner, 7), expected, rtol=0, atol=0)


# -- values and bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 24), (33, 40), (600, 100)])
def test_int8_values_are_the_quantised_weight_s(rows: int, columns: int, dtype: torch.dtype) -> None:
    dense = _dense(rows, columns, dtype)
    expected = quantize_symmetric(dense.weight, 8, columns, torch.float32).dequantize()
    values = _values(NativeCopy(dense, INT8, SETTINGS), columns, dtype)
    torch.testing.assert_close(values, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 32), (33, 96), (600, 128)])
def test_codebook_values_are_its_levels_and_nearer_than_even_steps(rows: int, columns: int, dtype: torch.dtype) -> None:
    dense = _dense(rows, columns, dtype)
    values = _values(NativeCopy(dense, INT4, SETTINGS), columns, dtype).float().view(rows, -1, 32)
    weight = dense.weight.float().view(rows, -1, 32)
    assert not values[0, 0].any()
    assert all(group.unique().numel() <= 16 for group in values.reshape(-1, 32))
    even = quantize_symmetric(dense.weight, 4, 32, torch.bfloat16).dequantize().view(rows, -1, 32)
    error, even_error = ((x - weight).square().sum(-1) for x in (values, even))
    assert (error <= 0.1**2 * 32 * weight.abs().amax(-1).square()).all()
    assert error.mean() < even_error.mean()


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e37, 3.3e38])
def test_codebook_copies_of_extreme_weights_stay_finite(scale: float) -> None:
    weight = torch.linspace(-1, 1, 64).repeat(16, 1) * scale
    assert _values(NativeCopy(Dense(weight, None), INT4, SETTINGS), 64, torch.float32).isfinite().all()


@pytest.mark.parametrize("precision", [INT8, INT4])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 32), (33, 96)])
def test_the_bytes_of_a_copy_are_known_beforehand(rows: int, columns: int, precision: Precision) -> None:
    dense = _dense(rows, columns, torch.bfloat16)
    assert copy_bytes(dense, precision, SETTINGS) == NativeCopy(dense, precision, SETTINGS).num_bytes
    assert copy_bytes(dense, SAME, SETTINGS) == 0


def test_what_has_no_kernel_is_refused() -> None:
    assert refusal(SAME, 7, SETTINGS) is refusal(INT8, 7, SETTINGS) is refusal(INT4, 64, SETTINGS) is None
    assert "its 48 inputs are no multiple of 32" in (refusal(INT4, 48, SETTINGS) or "")
    assert "groups of 64 were asked for" in (refusal(INT4, 64, LowBitSettings(64)) or "")
    with pytest.raises(
        UnsupportedPrecisionError, match="No int4 copy of a 16 × 40 weight can draft here: its 40 inputs"
    ):
        NativeCopy(_dense(16, 40, torch.float32), INT4, SETTINGS)


# -- drafts ------------------------------------------------------------------------------------------------------


_MIXED = (INT4, INT8, SAME, INT4, INT8, SAME)
_PRECISIONS = {
    "int8": DraftPrecision.uniform(3, INT8, INT8),
    "int4": DraftPrecision.uniform(3, INT4, INT4),
    "mixed": DraftPrecision(_MIXED, INT4),
    "mixed, backwards": DraftPrecision(_MIXED[::-1], INT8),
}


@cover(precision=_PRECISIONS, name=["float32", "bfloat16"], length=[9, 130])
def test_drafts_compute_with_the_copies_values_rounded_where_the_kernels_round(
    tmp_path: Path, name: str, precision: DraftPrecision, length: int
) -> None:
    loaded = load(llama(tmp_path, vocab_size=121, attention_bias=True, mlp_bias=True), name)
    runner = NativeRunner(loaded)
    prompt, tokens = prompt_tokens(length, vocabulary=121), prompt_tokens(12, 1, vocabulary=121)
    passes = [*([token] for token in tokens[:6]), tokens[6:8], tokens[8:]]  # few at once: what is in doubt stays so
    for draft in (
        Draft(SkipSet.empty(3), precision=precision),
        Draft(SkipSet(3, (1,), (2,)), precision=precision, vocabulary=37),
    ):
        # A choice that moves a group's greatest input moves all of them.
        assert check_passes(runner, RoundedModel(loaded, runner), prompt, passes, draft, most_open=12 * STEP) >= 0.5
        runner.rewind(length)
        drafted = draft_step(runner, 5)
        runner.rewind(length)
        assert runner.forward([5], is_draft=True, want=Want.TOKENS).tokens == [int(drafted.argmax())]


def test_drafting_low_leaves_full_passes_alone(loaded: LoadedModel) -> None:
    runner = NativeRunner(loaded)
    prefill(runner, prompt_tokens(9))
    plain = runner.forward([5, 6]).logits
    runner.rewind(9)
    runner.set_draft(Draft(SkipSet.empty(3), precision=DraftPrecision.uniform(3, INT4, INT8)))
    runner.forward([5, 6, 7, 8], is_draft=True, want=Want.TOKENS)
    runner.rewind(9)
    assert torch.equal(runner.forward([5, 6]).logits, plain)


def test_a_notice_says_once_that_inputs_are_learnt(loaded: LoadedModel) -> None:
    said: list[str] = []
    runner = NativeRunner(loaded)
    runner.notice = said.append
    runner.set_draft(Draft(SkipSet.empty(3), precision=DraftPrecision.uniform(3, INT8)))
    assert not said
    for precision in (INT4_EVERYWHERE, DraftPrecision.uniform(3, INT4, INT4)):
        runner.set_draft(Draft(SkipSet.empty(3), precision=precision))
    (notice,) = said
    assert notice.startswith("int4 copies are made: what they are fed")


# -- memory ------------------------------------------------------------------------------------------------------


def test_copies_stay_within_the_limit_and_give_the_same_drafts_when_made_anew(loaded: LoadedModel) -> None:
    runner = NativeRunner(loaded)
    drafts = [Draft(SkipSet.empty(3), precision=DraftPrecision.uniform(3, p, p)) for p in (INT4, INT8)]
    runner.extra_memory_bytes = max(runner.copy_bytes(draft) for draft in drafts) + 100
    prefill(runner, prompt_tokens(9))
    found: dict[Draft, list[Tensor]] = {draft: [] for draft in drafts}
    for draft in (*drafts, *drafts):
        runner.set_draft(draft)
        gc.collect()
        assert runner.copy_bytes(draft) <= runner._copies.num_bytes <= runner.extra_memory_bytes
        assert {key[:2] for key in runner._described} <= set(runner._copies._copies)  # no structure outlives its copy
        found[draft].append(draft_step(runner, 5))
        runner.rewind(9)
    assert all(torch.equal(*steps) for steps in found.values())
    runner.extra_memory_bytes = 100
    with pytest.raises(UsageError, match="`extra_memory`"):
        runner.set_draft(drafts[0])


def test_a_draft_that_cannot_be_set_leaves_the_one_before_it_whole(tmp_path: Path) -> None:
    runner = NativeRunner(load(llama(tmp_path, intermediate_size=80)))  # MLPs have no int4 copies
    assert "its 80 inputs are no multiple of 32" in (runner.precision_refusal(INT4) or "")
    assert runner.precision_refusal(INT8) is runner.precision_refusal(SAME) is None
    first = Draft(SkipSet.empty(3), precision=DraftPrecision((INT8, SAME) * 3))
    runner.set_draft(first)
    prefill(runner, prompt_tokens(9))
    drafted = draft_step(runner, 5)
    second = Draft(SkipSet.empty(3), precision=DraftPrecision((INT4, SAME) * 2 + (SAME, INT4)))
    runner.extra_memory_bytes = runner.copy_bytes(second)  # the first one's copies must go
    with pytest.raises(UnsupportedPrecisionError, match="no multiple of 32"):
        runner.set_draft(second)
    assert not set(runner._described) & {(0, INT8), (2, INT8), (4, INT8)}
    gc.collect()
    torch.full((1 << 16,), float("nan"))  # over memory that was freed
    runner.rewind(9)
    assert torch.equal(draft_step(runner, 5), drafted)
    runner.extra_memory_bytes = None
    runner.set_draft(first)
    runner.rewind(9)
    assert torch.equal(draft_step(runner, 5), drafted)


# -- several tokens at once ----------------------------------------------------------------------------------------


@cover(precision=["int4", "int8", "int4 mlp 0-1; int8 attn 1; head int4"], count=[2, 4, 5, 6, 13])
def test_a_draft_pass_over_several_tokens_is_as_many_steps(loaded: LoadedModel, precision: str, count: int) -> None:
    runner = NativeRunner(loaded)
    runner.set_draft(Draft(SkipSet(3, (1,), ()), precision=DraftPrecision.parse(precision, 3)))
    prompt, tokens = ([token % 121 for token in prompt_tokens(n, seed)] for n, seed in ((20, 1), (count, 2)))
    prefill(runner, prompt)
    steps = torch.stack([draft_step(runner, token) for token in tokens])
    runner.rewind(20)
    torch.testing.assert_close(runner.forward(tokens, is_draft=True).logits, steps, rtol=0, atol=0)
    runner.rewind(20)
    assert runner.forward(tokens, is_draft=True, want=Want.TOKENS).tokens == steps.argmax(-1).tolist()

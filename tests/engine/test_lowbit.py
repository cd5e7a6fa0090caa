"""Low-precision copies: torch's kernels against plain arithmetic, memory, and drafts made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.layers import lowbit as lowbit_module
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings, Parts, copy_bytes, int8_matvec, make_copy, refusal
from selfspec_tune.engine.layers.quantize import quantize_asymmetric, quantize_symmetric
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.errors import UnsupportedPrecisionError, UsageError
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.covering import cover
from tests.engine_kit import decode, draft_step, llama, load, prompt_tokens

CPU = torch.device("cpu")
INT8, INT4, SAME = Precision.INT8, Precision.INT4, Precision.SAME
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    """A model of the test's own: fusing changes it."""
    return load(tiny_llama_dir)


def _dense(rows: int, columns: int, dtype: torch.dtype = torch.float32, *, bias: bool = False) -> Dense:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    return Dense(weight, torch.randn(rows, generator=generator).to(dtype) if bias else None)


def _input(columns: int, tokens: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def _assert_close(ours: Tensor, weight: Tensor, dense: Dense, hidden: Tensor) -> None:
    """``ours`` is hidden times the dequantised ``weight``, with the bias."""
    exact = hidden.double() @ weight.double().T
    if dense.bias is not None:
        exact = exact + dense.bias.double()
    assert ours.dtype == hidden.dtype
    assert ours.shape == exact.shape
    assert (ours.double() - exact).norm() <= TOLERANCE[hidden.dtype] * exact.norm()


@cover(shape=[(48, 64), (100, 96), (7, 32), (640, 128)], tokens=[1, 5, 40], dtype=DTYPES)
def test_the_kernels_compute_with_the_quantised_weight(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> None:
    columns = shape[1]
    dense, hidden = _dense(*shape, dtype, bias=True), _input(columns, tokens, dtype)
    eight = quantize_symmetric(dense.weight, 8, columns, dtype).dequantize()
    _assert_close(make_copy(dense, INT8)(hidden), eight, dense, hidden)
    four = quantize_asymmetric(dense.weight, 4, 32, dtype).dequantize()
    _assert_close(make_copy(dense, INT4)(hidden), four, dense, hidden)


@pytest.mark.parametrize("settings", [LowBitSettings(64), LowBitSettings(32, True), LowBitSettings(128, True)])
def test_groups_and_symmetry_are_as_set(settings: LowBitSettings) -> None:
    dense, hidden = _dense(64, 256), _input(256, 2, torch.float32)
    make = quantize_symmetric if settings.symmetric else quantize_asymmetric
    weight = make(dense.weight, 4, settings.group_size, torch.float32).dequantize()
    _assert_close(make_copy(dense, INT4, settings)(hidden), weight, dense, hidden)


@pytest.mark.parametrize("precision", [INT8, INT4])
def test_a_copy_made_in_pieces_is_the_same(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, hidden = _dense(300, 64), _input(64, 3, torch.float32)
    whole = make_copy(dense, precision)(hidden)
    monkeypatch.setattr(lowbit_module, "_CHUNK_ELEMENTS", 64 * 64)
    assert torch.equal(make_copy(dense, precision)(hidden), whole)


@pytest.mark.parametrize("precision", [INT8, INT4])
@pytest.mark.parametrize("rows", [48, 128])
def test_a_copy_of_several_layers_is_one_of_each(precision: Precision, rows: int) -> None:
    whole = _dense(3 * rows, 64)
    stacked = Dense(whole.weight, None, parts=3)
    copy, hidden = make_copy(stacked, precision), _input(64, 2, torch.float32)
    assert copy.num_bytes == copy_bytes(stacked, precision, LowBitSettings())
    each = [make_copy(Dense(whole.weight[n * rows : (n + 1) * rows], None), precision)(hidden) for n in range(3)]
    assert isinstance(copy, Parts)
    assert all(torch.equal(copy.part(n)(hidden), each[n]) for n in range(3))
    assert torch.equal(copy.narrow(None)(hidden), torch.cat(each, -1))


@pytest.mark.parametrize("precision", [INT8, INT4])
@pytest.mark.parametrize("rows", [1, 40, 64, 200, 300, None])
def test_a_narrowed_copy_gives_the_first_outputs(precision: Precision, rows: int | None) -> None:
    dense, hidden = _dense(300, 64, bias=True), _input(64, 3, torch.float32)
    copy = make_copy(dense, precision)
    torch.testing.assert_close(copy.narrow(rows)(hidden), copy(hidden)[:, :rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (100, 96), (640, 128)])
def test_the_bytes_are_known_before_a_copy_is_made(rows: int, columns: int, dtype: torch.dtype) -> None:
    dense = _dense(rows, columns, dtype)
    for precision in (INT8, INT4):
        made = make_copy(dense, precision)
        assert made.num_bytes == copy_bytes(dense, precision, LowBitSettings())
    assert copy_bytes(dense, SAME, LowBitSettings()) == 0


@pytest.mark.parametrize(
    ("precision", "columns", "reason"),
    [
        (INT8, 40, "its 40 inputs are no multiple of 16"),
        (INT4, 48, "its 48 inputs are no multiple of the group size 32"),
    ],
)
def test_widths_without_a_kernel_are_refused(precision: Precision, columns: int, reason: str) -> None:
    with pytest.raises(UnsupportedPrecisionError, match=f"No {precision} copy of a 8 × {columns} weight .*{reason}"):
        make_copy(_dense(8, columns), precision)


def test_devices_and_dtypes_without_a_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mps" in (refusal(INT8, torch.device("mps"), torch.float32, 64) or "")
    assert "multiple of 32" in (refusal(INT4, CPU, torch.float32, 64, LowBitSettings(16)) or "")
    cuda = torch.device("cuda")
    assert "in float32" in (refusal(INT4, cuda, torch.float32, 64) or "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for capability, refused in (((7, 5), True), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert (refusal(INT4, cuda, torch.bfloat16, 64) is not None) is refused
    assert "not 96" in (refusal(INT4, cuda, torch.bfloat16, 96, LowBitSettings(96)) or "")


def test_a_kernel_that_does_not_compile_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lowbit_module._matvec_refusal.cache_clear()
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no compiler\nmore")))
    reason = refusal(INT8, torch.device("cuda"), torch.bfloat16, 64)
    lowbit_module._matvec_refusal.cache_clear()
    assert reason == "its kernel does not compile here (RuntimeError: no compiler)"


def test_the_matrix_vector_product_for_gpus_is_the_same_product() -> None:
    dense, hidden = _dense(48, 64), _input(64, 1, torch.float32)
    made = quantize_symmetric(dense.weight, 8, 64, torch.float32)
    _assert_close(int8_matvec(hidden, made.signed_codes, made.scale[:, 0]), made.dequantize(), dense, hidden)


# -- drafts ------------------------------------------------------------------------------------------------------

RUNNERS = [FastRunner, GraphedRunner]


def _draft(precision: DraftPrecision, skip_set: SkipSet | None = None, **settings: object) -> Draft:
    return Draft(skip_set or SkipSet.empty(4), DraftPolicy(PolicyKind.FIXED, 4), precision, **settings)  # type: ignore[arg-type]


@torch.inference_mode()
def _dequantised(directory: Path, precision: Precision, index: int) -> LoadedModel:
    """The model with the linear layers of one sub-layer (8: the head) replaced by what the copy stands for."""
    loaded = load(directory)
    runner = FastRunner(loaded)
    for dense in runner._linear_layers(index):
        weight = dense.weight
        if precision is INT8:
            weight.copy_(quantize_symmetric(weight, 8, weight.shape[1], weight.dtype).dequantize())
        else:
            weight.copy_(quantize_asymmetric(weight, 4, 32, weight.dtype).dequantize())
    return loaded


@cover(make={"fast": FastRunner, "graphs": GraphedRunner}, precision=[INT8, INT4], index=[0, 3, 8])
def test_a_draft_computes_with_the_copies_and_verification_does_not(
    tiny_llama_dir: Path, make: type[FastRunner], precision: Precision, index: int
) -> None:
    runner, other = make(load(tiny_llama_dir)), make(_dequantised(tiny_llama_dir, precision, index))
    sublayers = tuple(precision if i == index else SAME for i in range(8))
    draft = _draft(DraftPrecision(sublayers, precision if index == 8 else SAME))
    prefill(runner, prompt_tokens(9))
    plain = decode(runner, 5)
    runner.rewind(9)
    runner.set_draft(draft)
    drafted = draft_step(runner, 5)
    assert (drafted - plain).abs().max() > 1e-4
    runner.rewind(9)
    torch.testing.assert_close(runner.forward([5]).logits[0], plain, rtol=0, atol=0)
    # The other model differs in its prompt's keys and values too: take those of the first.
    prefill(other, prompt_tokens(9))
    with torch.inference_mode():
        other._state.keys.copy_(runner._state.keys)
        other._state.values.copy_(runner._state.values)
    torch.testing.assert_close(drafted, decode(other, 5), rtol=1e-4, atol=1e-4)


def test_copies_are_made_once_and_only_for_what_is_kept(loaded: LoadedModel) -> None:
    runner = FastRunner(loaded)
    assert (runner._copies.num_bytes, runner.copy_bytes(_draft(DraftPrecision()))) == (0, 0)
    everything = DraftPrecision.uniform(4, INT4)
    runner.set_draft(_draft(everything, SkipSet(4, (0, 1, 2, 3), (1, 2, 3))))
    one_mlp = runner._copies.num_bytes
    layers = (_dense(256, 64), _dense(64, 128))
    assert one_mlp == sum(copy_bytes(dense, INT4, LowBitSettings()) for dense in layers)
    first = runner._copies.get((1, INT4))
    runner.set_draft(_draft(everything))
    assert runner._copies.get((1, INT4)) is first
    assert runner._copies.num_bytes == runner.copy_bytes(_draft(everything)) > one_mlp
    runner.set_draft(_draft(DraftPrecision()))
    assert runner._copies.num_bytes > one_mlp  # kept for the next draft


@pytest.mark.parametrize("make", RUNNERS)
def test_copies_that_are_not_needed_make_room(loaded: LoadedModel, make: type[FastRunner]) -> None:
    runner = make(loaded)
    four, eight = _draft(DraftPrecision.uniform(4, INT4)), _draft(DraftPrecision.uniform(4, INT8))
    runner.extra_memory_bytes = max(runner.copy_bytes(four), runner.copy_bytes(eight)) + 100
    prefill(runner, prompt_tokens(9))
    drafted = {}
    for draft in (four, eight, four):
        runner.set_draft(draft)
        assert runner.copy_bytes(draft) <= runner._copies.num_bytes <= runner.extra_memory_bytes
        drafted.setdefault(draft, []).append(draft_step(runner, 5))
        runner.rewind(9)
    assert torch.equal(*drafted[four])


def test_a_draft_over_the_limit_is_refused_with_its_need(loaded: LoadedModel) -> None:
    runner = FastRunner(loaded)
    runner.extra_memory_bytes = 0
    runner.set_draft(_draft(DraftPrecision()))
    with pytest.raises(UsageError, match=r"needs 0\.1 MiB of low-precision copies; .* is 0\.0 MiB.*`extra_memory`"):
        runner.set_draft(_draft(DraftPrecision.uniform(4, INT8)))
    assert runner._copies.num_bytes == 0


def test_a_runner_says_which_precisions_it_cannot_draft_at(tmp_path: Path) -> None:
    runner = FastRunner(load(llama(tmp_path, hidden_size=48, intermediate_size=80, head_dim=16)))
    assert runner.precision_refusal(SAME) is None
    assert runner.precision_refusal(INT8) is None
    assert "its 48 inputs are no multiple of the group size 32" in (runner.precision_refusal(INT4) or "")
    with pytest.raises(UnsupportedPrecisionError, match="multiple of the group size"):
        runner.set_draft(Draft(SkipSet.empty(3), precision=DraftPrecision.uniform(3, INT4)))


def test_a_tied_model_keeps_its_embedding_when_its_head_is_copied(tmp_path: Path) -> None:
    loaded = load(kit.tiny_llama(tmp_path, tied=True), "bfloat16")
    before = loaded.model.get_input_embeddings().weight.clone()
    runner = FastRunner(loaded)
    runner.set_draft(_draft(DraftPrecision(head=INT4)))
    assert torch.equal(loaded.model.get_input_embeddings().weight, before)
    assert runner.head(torch.ones(2, 64, dtype=torch.bfloat16), 40, INT4).shape == (2, 40)
    assert runner.attention(0).projections[0].weight.dtype == torch.bfloat16

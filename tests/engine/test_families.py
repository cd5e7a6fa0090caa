"""Every family that has a plan, on every engine that serves it, against transformers' own forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner
from selfspec_tune.engine.choice import NearProbe
from selfspec_tune.engine.far_probe import FarProbe
from selfspec_tune.engine.kernels.weights import NativeCopy
from selfspec_tune.engine.layers.linear import Dense, Projection
from selfspec_tune.engine.layers.quantize import quantize_asymmetric, quantize_symmetric
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.bound import unbound_reason
from tests import kit
from tests.engine_kit import (
    HAS_COMPILER,
    decode,
    draft_step,
    hf_generate,
    load,
    needs_compiler,
    prompt_tokens,
    threads_of_torch,
)
from tests.families import FAMILIES

ENGINES: dict[str, type[FastRunner]] = {
    "fast": FastRunner,
    "graphs": GraphedRunner,
    **({"native": NativeRunner} if HAS_COMPILER else {}),
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06}  # of the largest logit


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of each family."""
    return kit.save_random(AutoConfig.for_model(**FAMILIES[request.param].config), tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return load(directory)


@pytest.fixture(scope="module")
def reference(loaded: LoadedModel) -> ReferenceRunner:
    return ReferenceRunner(loaded)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, loaded: LoadedModel) -> FastRunner:
    """Each engine that serves the family."""
    kind = ENGINES[request.param]
    reason = unserved_reason(loaded.model, kind.SERVES)
    if reason is not None:
        pytest.skip(reason)
    return kind(loaded)


def _tokens(loaded: LoadedModel, length: int, seed: int = 0) -> list[int]:
    return prompt_tokens(length, seed, loaded.vocabulary_size)


def _assert_agree(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(mine.reshape(other.shape), other, rtol=0, atol=tolerance * largest)


def test_the_plan_claims_every_tensor(loaded: LoadedModel) -> None:
    assert unbound_reason(loaded.model) is None


def test_logits_equal_one_forward(loaded: LoadedModel, engine: FastRunner) -> None:
    tokens = _tokens(loaded, 640)
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([tokens])).logits[0]
    engine.reserve(len(tokens))
    for length in (1, 33, 34, 600):
        steps = [prefill(engine, tokens[:length]), decode(engine, tokens[length])]
        steps += engine.forward(tokens[length + 1 : length + 5]).logits  # a verification
        steps += engine.forward(tokens[length + 5 : length + 40]).logits  # more than one ever has
        _assert_agree(steps, list(logits[length - 1 : length + 40]))


def _skip_sets(num_layers: int) -> Iterator[SkipSet]:
    """Nothing, every attention, every MLP, everything, and each half alone."""
    layers = tuple(range(num_layers))
    yield from (SkipSet.empty(num_layers), SkipSet(num_layers, layers), SkipSet(num_layers, (), layers))
    yield SkipSet(num_layers, layers, layers)
    yield from (SkipSet(num_layers, (layer,)) for layer in layers)
    yield from (SkipSet(num_layers, (), (layer,)) for layer in layers)


def _drafts(runner: Runner, tokens: Sequence[int]) -> list[Tensor]:
    """Logits of drafting, one token at a time and at once, with every skip set, and of what is verified after."""
    *prompt, a, b, c = tokens
    runner.reserve(len(tokens))
    prefill(runner, prompt)
    logits = []
    for skip_set in _skip_sets(runner.num_layers):
        runner.set_draft(Draft(skip_set))
        logits += [draft_step(runner, token) for token in (a, b)]
        runner.rewind(len(prompt))
        logits.append(runner.forward([a, b, c], is_draft=True).logits)
        runner.rewind(len(prompt))
    return [*logits, runner.forward([a, b, c]).logits]


def test_drafts_equal_the_reference_whatever_they_skip(
    loaded: LoadedModel, engine: FastRunner, reference: ReferenceRunner
) -> None:
    tokens = _tokens(loaded, 22)
    _assert_agree(_drafts(engine, tokens), _drafts(reference, tokens))


def _walk(runner: Runner, prompt: Sequence[int], further: Sequence[int]) -> list[Tensor]:
    """Logits of every kind of call, in an order that decoding could make."""
    layers = runner.num_layers
    runner.reserve(len(prompt) + len(further))
    runner.set_draft(Draft(SkipSet(layers, (layers - 1,), (0,))))
    a, b, c, d, e, *more = further
    logits = [prefill(runner, prompt), decode(runner, a)]
    verified = runner.length
    logits += [draft_step(runner, b), draft_step(runner, c)]
    runner.rewind(verified)
    logits.append(runner.forward([b, c, d, e]).logits)
    runner.rewind(verified + 2)  # one draft accepted
    logits += [draft_step(runner, e), draft_step(runner, b)]
    runner.rewind(verified + 2)
    logits += [runner.forward([e]).logits, decode(runner, d)]
    runner.rewind(max(1, len(prompt) // 2))  # far back, into the prompt
    return [*logits, decode(runner, c), runner.forward(more).logits]


def test_any_order_of_calls_equals_the_reference(
    loaded: LoadedModel, engine: FastRunner, reference: ReferenceRunner
) -> None:
    prompt, further = _tokens(loaded, 37), _tokens(loaded, 40, seed=1)
    _assert_agree(_walk(engine, prompt, further), _walk(reference, prompt, further))


def test_greedy_tokens_equal_generate(loaded: LoadedModel, engine: FastRunner) -> None:
    prompt = _tokens(loaded, 12, seed=2)
    engine.reserve(len(prompt) + 8)
    tokens = [int(prefill(engine, prompt).argmax())]
    while len(tokens) < 8:
        tokens.append(int(decode(engine, tokens[-1]).argmax()))
    assert tokens == hf_generate(loaded, prompt, Limits(8))


def test_a_rewound_cache_equals_one_that_never_drafted(loaded: LoadedModel, engine: FastRunner) -> None:
    prompt, num_layers = _tokens(loaded, 20), loaded.num_layers
    engine.reserve(40)
    prefill(engine, prompt)
    plain = [decode(engine, 8), decode(engine, 9)]
    engine.set_draft(Draft(SkipSet(num_layers, tuple(range(num_layers)), (0,))))
    prefill(engine, prompt)
    for token in (4, 5, 6):
        draft_step(engine, token)
    engine.rewind(20)
    engine.forward([8, 4, 5])
    engine.rewind(20)
    for ours, theirs in zip([decode(engine, 8), decode(engine, 9)], plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_copies_equal_their_dequantised_weights(loaded: LoadedModel, engine: FastRunner, precision: Precision) -> None:
    if engine.precision_refusal(precision) is not None:
        pytest.skip("torch has no such copies here")
    num_layers, prompt = loaded.num_layers, _tokens(loaded, 12)
    copied = Draft(SkipSet.empty(num_layers), precision=DraftPrecision.uniform(num_layers, precision, precision))
    engine.reserve(40)
    prefill(engine, prompt)
    whole = decode(engine, 5)
    engine.rewind(12)
    engine.set_draft(copied)
    drafted = draft_step(engine, 5)
    assert (drafted - whole).abs().max() > 1e-4
    engine.rewind(12)
    fast = FastRunner(loaded)
    fast.reserve(40)
    prefill(fast, prompt)
    *halves, (head,) = [
        [_dequantised(copy, dense, precision) for copy, dense in zip(copies, fast._linear_layers(index), strict=True)]
        for index, copies in enumerate(engine._copies.get((index, precision)) for index in range(2 * num_layers + 1))
    ]
    fast._sublayers = [
        sublayer.with_projections(*projections) for sublayer, projections in zip(fast._sublayers, halves, strict=True)
    ]
    fast.set_draft(Draft(SkipSet.empty(num_layers)))
    fast._draft_head = head
    is_rounded = precision is Precision.INT4 and isinstance(engine, NativeRunner)  # what its int4 kernels read
    _assert_agree([drafted], [draft_step(fast, 5)], 0.03 if is_rounded else 1e-4)


def _dequantised(copy: Projection, dense: Dense, precision: Precision) -> Projection:
    if isinstance(copy, NativeCopy):
        return copy  # called from torch, it multiplies with its dequantised weights
    weight = dense.weight
    if precision is Precision.INT8:
        values = quantize_symmetric(weight, 8, weight.shape[1], weight.dtype).dequantize()
    else:
        values = quantize_asymmetric(weight, 4, 32, weight.dtype).dequantize()
    return Dense(values, dense.bias, dense.parts)


def test_a_short_draft_vocabulary_keeps_the_first_logits(loaded: LoadedModel, engine: FastRunner) -> None:
    skip_set = SkipSet(loaded.num_layers, (0,))
    engine.reserve(40)
    prefill(engine, _tokens(loaded, 6))
    engine.set_draft(Draft(skip_set))
    whole = draft_step(engine, 7)
    engine.rewind(6)
    engine.set_draft(Draft(skip_set, vocabulary=20))
    part = draft_step(engine, 7)
    assert part.shape == (20,)
    _assert_agree([part], [whole[:20]])


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_native_bits_depend_neither_on_tokens_nor_on_threads(directory: Path, dtype: str) -> None:
    loaded = load(directory, dtype)
    reason = unserved_reason(loaded.model, NativeRunner.SERVES)
    if reason is not None:
        pytest.skip(reason)
    runner, tokens, found = NativeRunner(loaded), _tokens(loaded, 40), []
    for threads, sizes in ((1, (1, 32)), (2, (7,))):
        with threads_of_torch(threads):
            runner.release()
            runner.reserve(200)
        prefill(runner, _tokens(loaded, 110, seed=1))  # a chunk of the cache ends among the tokens
        for size in sizes:
            runner.rewind(110)
            pieces = (tokens[at : at + size] for at in range(0, len(tokens), size))
            found.append(torch.cat([runner.forward(piece).logits for piece in pieces]))
    for logits in found[1:]:
        assert torch.equal(logits, found[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_probe_passes_near_and_far(directory: Path, dtype: str) -> None:
    loaded = load(directory, dtype)
    for kind in ENGINES.values():
        if unserved_reason(loaded.model, kind.SERVES) is None:
            reference = ReferenceRunner(loaded)
            assert NearProbe(loaded, reference).difference(kind(loaded)) <= TOLERANCE[dtype]
            assert FarProbe(loaded, reference).difference(kind(loaded)) <= 1.5 * TOLERANCE[dtype]

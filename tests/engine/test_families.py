"""Every family that has a plan, on every engine that serves it, against transformers' own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner
from selfspec_tune.engine.far_probe import FarProbe
from selfspec_tune.engine.kernels.weights import NativeCopy
from selfspec_tune.engine.layers.linear import Dense, Projection
from selfspec_tune.engine.layers.quantize import quantize_asymmetric, quantize_symmetric
from selfspec_tune.engine.near_probe import NearProbe
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.models import LoadedModel
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


def _cover() -> set[str]:
    """Few rows that need every feature that any needs."""
    found, missing = {"llama"}, set().union(*(row.needs for row in FAMILIES.values()))
    while missing:
        best = max(FAMILIES, key=lambda name: len(FAMILIES[name].needs & missing))
        found.add(best)
        missing -= FAMILIES[best].needs
    return found


# Of tests that look at one feature at a time: the other rows with --all.
by_feature = pytest.mark.parametrize(
    "directory",
    [pytest.param(name, marks=[] if name in _cover() else pytest.mark.long) for name in FAMILIES],
    indirect=True,
)


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


@pytest.fixture(scope="module")
def engines(loaded: LoadedModel) -> list[FastRunner]:
    """Every engine that serves the family."""
    return _engines(loaded)


def _engines(loaded: LoadedModel, names: Iterable[str] = ENGINES) -> list[FastRunner]:
    kinds = [ENGINES[name] for name in names if name in ENGINES]
    return [kind(loaded) for kind in kinds if unserved_reason(loaded.model, kind.SERVES) is None]


def _tokens(loaded: LoadedModel, length: int, seed: int = 0) -> list[int]:
    return prompt_tokens(length, seed, loaded.vocabulary_size)


def _assert_agree(engine: Runner, ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        off = float((mine.reshape(other.shape) - other).abs().max()) / max(1.0, float(other.abs().max()))
        assert off <= tolerance, (engine.name, step)


def test_the_fast_runner_serves_it(loaded: LoadedModel, engines: list[FastRunner]) -> None:
    assert unserved_reason(loaded.model, FastRunner.SERVES) is None
    assert {"fast", "graphs"} <= {engine.name for engine in engines}


def test_logits_equal_one_forward(loaded: LoadedModel, engines: list[FastRunner]) -> None:
    tokens = _tokens(loaded, 640)
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([tokens])).logits[0]
    for engine in engines:
        engine.reserve(len(tokens))
        for length in (1, 33, 34, 600):
            steps = [prefill(engine, tokens[:length]), decode(engine, tokens[length])]
            steps += engine.forward(tokens[length + 1 : length + 5]).logits  # a verification
            steps += engine.forward(tokens[length + 5 : length + 40]).logits  # more than one ever has
            _assert_agree(engine, steps, list(logits[length - 1 : length + 40]))
        engine.release()  # what follows is short


def _skip_sets(num_layers: int) -> Iterator[SkipSet]:
    """Nothing, every attention, every MLP, everything, and each sub-layer alone."""
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
    loaded: LoadedModel, engines: list[FastRunner], reference: ReferenceRunner
) -> None:
    tokens = _tokens(loaded, 22)
    expected = _drafts(reference, tokens)
    for engine in engines:
        _assert_agree(engine, _drafts(engine, tokens), expected)


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


@by_feature
def test_any_order_of_calls_equals_the_reference(
    loaded: LoadedModel, engines: list[FastRunner], reference: ReferenceRunner
) -> None:
    prompt, further = _tokens(loaded, 37), _tokens(loaded, 40, seed=1)
    expected = _walk(reference, prompt, further)
    for engine in engines:
        _assert_agree(engine, _walk(engine, prompt, further), expected)


@by_feature
def test_greedy_tokens_equal_generate(loaded: LoadedModel, engines: list[FastRunner]) -> None:
    prompt = _tokens(loaded, 12, seed=2)
    expected = hf_generate(loaded, prompt, Limits(8))
    for engine in engines:
        engine.reserve(len(prompt) + 8)
        tokens = [int(prefill(engine, prompt).argmax())]
        while len(tokens) < 8:
            tokens.append(int(decode(engine, tokens[-1]).argmax()))
        assert tokens == expected, engine.name


@by_feature
def test_a_rewound_cache_equals_one_that_never_drafted(loaded: LoadedModel, engines: list[FastRunner]) -> None:
    prompt, num_layers = _tokens(loaded, 20), loaded.num_layers
    for engine in engines:
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
        assert all(map(torch.equal, [decode(engine, 8), decode(engine, 9)], plain)), engine.name


@by_feature
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_copies_equal_their_dequantised_weights(
    loaded: LoadedModel, engines: list[FastRunner], precision: Precision
) -> None:
    num_layers, prompt = loaded.num_layers, _tokens(loaded, 12)
    copied = Draft(SkipSet.empty(num_layers), precision=DraftPrecision.uniform(num_layers, precision, precision))
    for engine in engines:
        if engine.precision_refusal(precision) is not None:
            continue
        if isinstance(engine, NativeRunner):
            engine._moments = {}  # what is learnt from a text would only take time
        engine.reserve(40)
        prefill(engine, prompt)
        whole = decode(engine, 5)
        engine.rewind(12)
        engine.set_draft(copied)
        drafted = draft_step(engine, 5)
        assert (drafted - whole).abs().max() > 1e-4
        is_rounded = precision is Precision.INT4 and isinstance(engine, NativeRunner)  # what its int4 kernels read
        expected = _drafted_with_dequantised(loaded, engine, prompt, precision)
        _assert_agree(engine, [drafted], [expected], 0.03 if is_rounded else 1e-4)


def _drafted_with_dequantised(
    loaded: LoadedModel, engine: FastRunner, prompt: Sequence[int], precision: Precision
) -> Tensor:
    """The logits of token 5, after a prompt that the whole model has read."""
    fast, indices = FastRunner(loaded), range(2 * loaded.num_layers + 1)
    fast.reserve(40)
    prefill(fast, prompt)
    *copies, (head,) = [
        [_dequantised(copy, dense, precision) for copy, dense in zip(copies, fast._linear_layers(index), strict=True)]
        for index, copies in enumerate(engine._copies.get((index, precision)) for index in indices)
    ]
    fast._sublayers = [
        sublayer.with_projections(*projections) for sublayer, projections in zip(fast._sublayers, copies, strict=True)
    ]
    fast.set_draft(Draft(SkipSet.empty(loaded.num_layers)))
    fast._draft_head = head
    return draft_step(fast, 5)


def _dequantised(copy: Projection, dense: Dense, precision: Precision) -> Projection:
    if isinstance(copy, NativeCopy):
        return copy  # called from torch, it multiplies with its dequantised weights
    weight = dense.weight
    if precision is Precision.INT8:
        made = quantize_symmetric(weight, 8, weight.shape[1], weight.dtype)
    else:
        made = quantize_asymmetric(weight, 4, 32, weight.dtype)
    return Dense(made.dequantize(), dense.bias, dense.parts)


@by_feature
def test_a_short_draft_vocabulary_keeps_the_first_logits(loaded: LoadedModel, engines: list[FastRunner]) -> None:
    skip_set = SkipSet(loaded.num_layers, (0,))
    for engine in engines:
        engine.reserve(40)
        prefill(engine, _tokens(loaded, 6))
        engine.set_draft(Draft(skip_set))
        whole = draft_step(engine, 7)
        engine.rewind(6)
        engine.set_draft(Draft(skip_set, vocabulary=20))
        part = draft_step(engine, 7)
        assert part.shape == (20,)
        _assert_agree(engine, [part], [whole[:20]])


@by_feature
@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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


def test_the_probe_passes_near_and_far(
    loaded: LoadedModel, reference: ReferenceRunner, engines: list[FastRunner]
) -> None:
    near, far = NearProbe(loaded, reference), FarProbe(loaded, reference)
    for engine in engines:
        assert near.difference(engine) <= 1e-4
        assert far.difference(engine) <= 1e-4
        engine.release()


@by_feature
def test_bfloat16_is_as_near_as_rounding_allows(directory: Path) -> None:
    loaded = load(directory, "bfloat16")
    tokens = _tokens(loaded, 40)
    with torch.inference_mode():
        expected = loaded.model(input_ids=torch.tensor([tokens])).logits[0, 8:].float()
    for engine in _engines(loaded, ("fast", "native")):
        engine.reserve(40)
        prefill(engine, tokens[:8])
        off = (engine.forward(tokens[8:]).logits.float() - expected).abs().amax(-1) / expected.abs().max()
        assert off.median() <= 0.06  # at some positions another expert is chosen, or rounding adds up

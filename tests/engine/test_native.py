"""The native runner: the same bits for any number of tokens and threads, equality with the fast runner, misuse."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.kernels.binding import load_library
from selfspec_tune.engine.runner import Want, prefill
from selfspec_tune.engine.runners import native as native_module
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.native import NativeRunner, native_unsupported_reason
from selfspec_tune.errors import NonFiniteError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.plans import DecoderPlan, LayerPlan, registry
from selfspec_tune.plans.families.llama import llama as llama_plan
from tests import kit
from tests.covering import cover
from tests.engine_kit import (
    certainty_by,
    decode,
    draft_step,
    llama,
    load,
    needs_compiler,
    prompt_tokens,
    threads_of_torch,
)
from tests.rounded_runner import RoundedModel, check_passes

pytestmark = needs_compiler

VOCABULARY = 97  # no multiple of 16
SHAPES: dict[str, dict[str, object]] = {
    "grouped": {},
    "narrow, one KV head, biases": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "multi-head, biases": {
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "wide heads, odd MLP, tied": {
        "hidden_size": 72,
        "intermediate_size": 97,
        "head_dim": 80,
        "tie_word_embeddings": True,
    },
    "seven queries a KV head": {"hidden_size": 56, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 16},
    # so that the inputs of a few tokens are too many to stay in the first cache
    "wide": {"hidden_size": 672, "intermediate_size": 2101, "num_attention_heads": 4, "head_dim": 16},
    "tiny": {"hidden_size": 18, "intermediate_size": 7, "num_attention_heads": 2, "head_dim": 2},
}
DTYPES = ["bfloat16", "float32"]
Step = tuple[str, Tensor]


def _load(directory: Path, shape: str, dtype: str, **settings: object) -> LoadedModel:
    values: dict[str, object] = {"num_hidden_layers": 2, "vocab_size": VOCABULARY}
    return load(llama(directory, **(values | SHAPES[shape] | settings)), dtype)


def _prompt(length: int, seed: int = 0) -> list[int]:
    return prompt_tokens(length, seed, VOCABULARY)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], LoadedModel]:
    """Every odd shape in both types, made when first asked for; read only."""
    return cache(lambda shape, dtype: _load(tmp_path_factory.mktemp("model"), shape, dtype))


@pytest.fixture
def model(models: Callable[[str, str], LoadedModel], shape: str, dtype: str) -> LoadedModel:
    """The one that a test's arguments name."""
    return models(shape, dtype)


@pytest.fixture
def small(tmp_path: Path) -> LoadedModel:
    """A bfloat16 model of the test's own."""
    return _load(tmp_path, "grouped", "bfloat16")


def _in_chunks(runner: NativeRunner, start: int, tokens: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Logits [tokens, vocabulary] of ``tokens`` after ``start`` positions, verified ``sizes`` at a time."""
    runner.rewind(start)
    logits, at, size = [], 0, cycle(sizes)
    while at < len(tokens):
        chunk = tokens[at : at + next(size)]
        logits.append(runner.forward(chunk).logits)
        at += len(chunk)
    return torch.cat(logits)


# -- the same bits -----------------------------------------------------------------------------------------------


@cover(shape=list(SHAPES), dtype=DTYPES)
def test_any_chunking_gives_the_same_bits(model: LoadedModel) -> None:
    runner, tokens = NativeRunner(model), _prompt(45, seed=1)
    runner.reserve(200)
    prefill(runner, _prompt(110))  # a chunk of the cache ends among the tokens
    single = torch.stack([decode(runner, token) for token in tokens])
    assert single.isfinite().all()
    for size in range(1, 34):
        assert torch.equal(_in_chunks(runner, 110, tokens, [size]), single), size
    assert torch.equal(_in_chunks(runner, 110, tokens, [3, 1, 40, 2]), single)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["grouped", "narrow, one KV head, biases"])
def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, shape: str, dtype: str) -> None:
    model = _load(tmp_path, shape, dtype, vocab_size=601)  # several blocks of the head
    tokens, found = _prompt(12, seed=1), []
    for count in (1, 2, 3):
        with threads_of_torch(count):
            runner = NativeRunner(model)
            runner.reserve(200)
        prefill(runner, _prompt(122))
        logits = torch.cat([_in_chunks(runner, 122, tokens, sizes) for sizes in ([1], [5], [12])])
        runner.set_draft(Draft(SkipSet(2, (1,)), DraftPolicy(), vocabulary=555))
        found.append((logits, runner.forward([5, 6, 7], is_draft=True, want=Want.CERTAINTIES)))
    for logits, drafted in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert drafted == found[0][1]


FEWER_THREADS = """
import ctypes, os, resource, sys
library, libc = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None)
libc.mallopt(-1, 1 << 30)  # what is freed stays at hand: only stacks are to lack memory
libc.mallopt(-3, 1 << 30)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
libc.free(libc.malloc(256 << 20))  # nor is scratch memory, of which more threads need more
assert library.self_test(1) == 0
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, ((pages * resource.getpagesize()) + (4 << 20), resource.RLIM_INFINITY))
print(library.self_test(8), len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how many threads there are")
def test_fewer_threads_than_asked_for_give_the_same_bits() -> None:
    """A process may not have as many as it wants: here there is no memory for their stacks."""
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", FEWER_THREADS, load_library()._name],
        capture_output=True,
        text=True,
        check=True,
    )
    failed, threads = map(int, run.stdout.split())
    assert failed == 0
    assert 1 < threads < 8


def test_a_forked_process_makes_threads_of_its_own() -> None:
    """It inherits the pool's state, and none of its threads."""
    forked = f"""
import ctypes, os, sys
library = ctypes.CDLL({load_library()._name!r})
assert library.self_test(2) == 0
child = os.fork()
if child == 0:
    os._exit(library.self_test(2))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", forked], check=True, timeout=120)


# -- what the kernels compute ------------------------------------------------------------------------------------


PASSES = [[7], [8, 9, 11, 12], [5], _prompt(9, seed=2)]
DRAFT = Draft(SkipSet(2, (0,), (1,)))


@cover(shape=list(SHAPES), dtype=DTYPES, length=[1, 127, 129, 300])
def test_the_kernels_compute_what_float64_does_rounded_where_they_round(model: LoadedModel, length: int) -> None:
    runner = NativeRunner(model)
    share = check_passes(runner, RoundedModel(model, runner), _prompt(length), PASSES, DRAFT)
    assert share >= 0.5  # a choice that float32 makes otherwise moves the later rows of its pass too


@pytest.mark.parametrize("size", [32, 80, 112, 160, 192])
def test_heads_of_sizes_with_a_kernel_of_their_own_compute_it_too(tmp_path: Path, size: int) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = _load(tmp_path, "grouped", "bfloat16", head_dim=size, **sizes)
    runner = NativeRunner(model)
    check_passes(runner, RoundedModel(model, runner), _prompt(140), PASSES, DRAFT)


def test_a_runner_that_rounds_elsewhere_is_told_from_that(models: Callable[[str, str], LoadedModel]) -> None:
    model = models("grouped", "bfloat16")
    runner = FastRunner(model)
    with pytest.raises(AssertionError):
        check_passes(runner, RoundedModel(model, runner), _prompt(33), PASSES, DRAFT)


def _plan(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, LayerPlan], LayerPlan], epsilon: float = 1e-6
) -> None:
    """Plans of Llamas whose layers differ from one another, and the last norm's ``epsilon``."""

    def changed(config: Mapping[str, Any]) -> DecoderPlan:
        plan = llama_plan(config)
        layers = tuple(change(index, layer) for index, layer in enumerate(plan.layers))
        assert plan.norm is not None
        return replace(plan, layers=layers, norm=replace(plan.norm, epsilon=epsilon))

    monkeypatch.setitem(registry.FAMILIES, "llama", changed)


def test_each_sublayer_has_its_own_epsilon_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = _load(tmp_path, "grouped", "float32")
    for index, layer in enumerate(model.model.model.layers):
        layer.input_layernorm.variance_epsilon = 0.1 + index
        layer.post_attention_layernorm.variance_epsilon = 0.7 - index / 2
        layer.self_attn.scaling = 0.1 + 0.2 * index
    model.model.model.norm.variance_epsilon = 2.0

    def change(index: int, layer: LayerPlan) -> LayerPlan:
        assert layer.attention.norm is not None
        assert layer.mlp.norm is not None
        norms = replace(layer.attention.norm, epsilon=0.1 + index), replace(layer.mlp.norm, epsilon=0.7 - index / 2)
        attention = replace(layer.attention, norm=norms[0], scale=0.1 + 0.2 * index)
        return replace(layer, attention=attention, mlp=replace(layer.mlp, norm=norms[1]))

    _plan(monkeypatch, change, epsilon=2.0)
    runner = NativeRunner(model)
    check_passes(runner, RoundedModel(model, runner), _prompt(9), PASSES, DRAFT)


def test_mlps_may_have_widths_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = _load(tmp_path, "grouped", "float32")
    mlp = model.model.model.layers[1].mlp
    for name, shape in (("gate_proj", (900, 64)), ("up_proj", (900, 64)), ("down_proj", (64, 900))):
        layer = nn.Linear(shape[1], shape[0], bias=False)
        layer.weight.data = torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 30
        setattr(mlp, name, layer)
    _plan(monkeypatch, lambda i, layer: replace(layer, mlp=replace(layer.mlp, width=900)) if i == 1 else layer)
    runner = NativeRunner(model)
    check_passes(runner, RoundedModel(model, runner), _prompt(9), PASSES, DRAFT)


# -- the most probable token -------------------------------------------------------------------------------------


@cover(shape=list(SHAPES), dtype=DTYPES, vocabulary=[None, 37, 16, 5])
def test_greedy_calls_give_the_highest_logit_and_its_probability(model: LoadedModel, vocabulary: int | None) -> None:
    runner, tokens = NativeRunner(model), _prompt(40, seed=4)
    runner.reserve(100)
    runner.set_draft(Draft(SkipSet(2, (1,)), vocabulary=vocabulary))
    prefill(runner, _prompt(9))
    logits = runner.forward(tokens).logits
    runner.rewind(9)
    assert runner.forward(tokens, want=Want.TOKENS).tokens == logits.argmax(-1).tolist()
    runner.rewind(9)
    assert [runner.forward([token], want=Want.TOKENS).tokens[0] for token in tokens] == logits.argmax(-1).tolist()
    runner.rewind(9)
    drafted = runner.forward(tokens, is_draft=True, want=Want.CERTAINTIES)
    runner.rewind(9)
    for before, token, certainty in zip(tokens, drafted.tokens, drafted.certainties, strict=True):
        step = draft_step(runner, before)
        assert step.shape == (vocabulary or VOCABULARY,)
        assert token == int(step.argmax())
        assert certainty == pytest.approx(certainty_by(step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_lowest_token_wins(tmp_path: Path, dtype: str) -> None:
    model: Any = _load(tmp_path, "grouped", dtype, vocab_size=600)
    head = model.model.lm_head.weight.data
    head[300:] = head[:300]  # every logit comes twice, in other lanes and blocks
    runner, tokens = NativeRunner(model), _prompt(30)
    runner.reserve(64)
    prefill(runner, tokens)
    greedy = runner.forward(tokens, want=Want.TOKENS).tokens
    assert max(greedy) < 300
    runner.rewind(30)
    assert greedy == runner.forward(tokens).logits.argmax(-1).tolist()


def test_logits_are_written_down_only_where_they_are_wanted(small: LoadedModel) -> None:
    runner, kernels = NativeRunner(small), load_library()
    written: list[bool] = []

    class Watched:
        def engine_run(self, *arguments: Any) -> None:
            written.append(arguments[7] is not None)
            kernels.engine_run(*arguments)

    runner.reserve(100)
    prefill(runner, _prompt(9))
    runner._library = Watched()
    for is_draft in (False, True):
        for want in Want:
            runner.forward(_prompt(40), is_draft=is_draft, want=want)
            assert written == [want is Want.LOGITS] * len(written) != []
            written.clear()
            runner.rewind(9)
    runner._library = kernels


# -- misuse, memory ----------------------------------------------------------------------------------------------


def test_a_pass_past_the_cache_is_refused_before_it_begins(tmp_path: Path) -> None:
    runner = NativeRunner(_load(tmp_path, "grouped", "float32", max_position_embeddings=64))
    with pytest.raises(UsageError, match="ends at position 1, and the cache holds 0"):
        decode(runner, 3)
    prefill(runner, _prompt(20))
    for want in Want:
        with pytest.raises(UsageError, match="ends at position 65, and the cache holds 64"):
            runner.forward(_prompt(45), want=want)
        assert runner.length == 20
    runner.forward(_prompt(44))
    with pytest.raises(UsageError, match="ends at position 65"):
        runner.forward([3], is_draft=True, want=Want.TOKENS)


@pytest.mark.parametrize("token", [VOCABULARY, -1, 1 << 40])
def test_a_token_that_the_model_does_not_embed_is_refused(small: LoadedModel, token: int) -> None:
    runner = NativeRunner(small)
    prefill(runner, _prompt(9))
    with pytest.raises(IndexError, match="the model embeds the tokens 0 to 96"):
        runner.forward([3, token])
    assert runner.length == 9


def test_logits_that_are_no_numbers_draft_some_token_and_end_everything_else(small: LoadedModel) -> None:
    loaded: Any = small
    loaded.model.lm_head.weight.data.fill_(float("nan"))
    runner = NativeRunner(loaded)
    prefill(runner, _prompt(9))
    scores = runner.forward([5, 6, 7], is_draft=True, want=Want.CERTAINTIES)
    assert scores.tokens == [0, 0, 0]
    assert all(isnan(certainty.confidence) for certainty in scores.certainties)
    runner.rewind(9)
    with pytest.raises(NonFiniteError, match="at position 10 are no finite numbers"):
        runner.forward([5, 6, 7], want=Want.TOKENS)
    runner.rewind(9)
    with pytest.raises(NonFiniteError, match="at position 10 are no finite numbers"):
        runner.forward([5], want=Want.TOKENS)
    runner.rewind(9)
    assert runner.forward([5, 6]).logits.isnan().all()


class _Counting:
    """The kernels, with a count of the engines that are open."""

    def __init__(self) -> None:
        self.library, self.open = load_library(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def engine_new(self, model: Any) -> Any:
        self.open += 1
        return self.library.engine_new(model)

    def engine_free(self, engine: Any) -> None:
        self.open -= 1
        self.library.engine_free(engine)


def test_every_engine_is_freed_once(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Counting()
    monkeypatch.setattr(native_module, "load_library", lambda: library)
    first = None
    for _ in range(5):
        runner = NativeRunner(small)
        prefill(runner, _prompt(9))
        runner.reserve(300)
        assert library.open == 1
        prefill(runner, _prompt(9))
        logits = decode(runner, 5)
        first = logits if first is None else first
        assert torch.equal(logits, first)
        del runner
        gc.collect()
        assert library.open == 0


def test_a_cache_without_scratch_memory_is_refused_and_may_be_tried_again(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _Counting()
    monkeypatch.setattr(native_module, "load_library", lambda: library)
    runner = NativeRunner(small)
    with monkeypatch.context() as without_memory:
        without_memory.setattr(library, "engine_new", lambda model: None)
        with pytest.raises(UsageError, match=r"No memory for the native kernels' scratch space.*`max_new_tokens`"):
            runner.reserve(64)
        with pytest.raises(UsageError, match="the cache holds 0"):
            decode(runner, 5)
    prefill(runner, _prompt(9))
    assert decode(runner, 5).isfinite().all()


# -- which models ------------------------------------------------------------------------------------------------


def test_what_the_kernels_cannot_read_is_named(tmp_path: Path) -> None:
    reason = native_unsupported_reason
    assert reason(_load(tmp_path / "fine", "grouped", "bfloat16")) is None
    assert "lm_head.weight is float16" in (reason(_mixed(tmp_path / "head", torch.float16)) or "")
    assert reason(_mixed(tmp_path / "wide head", torch.float32)) is None
    half = _load(tmp_path / "half", "grouped", "float16")
    assert "read bfloat16 and float32, and model.embed_tokens.weight is float16" in (reason(half) or "")
    wide = _load(tmp_path / "wide", "grouped", "float32", head_dim=514, num_attention_heads=1, num_key_value_heads=1)
    assert "heads of up to 512, not 514" in (reason(wide) or "")
    strided: Any = _load(tmp_path / "strided", "grouped", "float32")
    weight = strided.model.model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous().T
    assert "contiguous weights, and model.layers.0.self_attn.o_proj.weight" in (reason(strided) or "")
    embedding: Any = _load(tmp_path / "embedding", "grouped", "bfloat16")
    embedding.model.model.embed_tokens.float()
    assert "its model.embed_tokens is float32, and the model bfloat16" in (reason(embedding) or "")


def test_transposed_weights_and_learned_positions_are_read(tmp_path: Path) -> None:
    from transformers import GPT2Config

    sizes = {"n_embd": 24, "n_head": 3, "n_layer": 1, "n_positions": 64, "vocab_size": VOCABULARY}
    loaded: Any = load(kit.save_random(GPT2Config(**sizes), tmp_path), "bfloat16")
    FastRunner(loaded)  # which turns them, and leaves the modules a view
    assert native_unsupported_reason(loaded) is None
    loaded.model.transformer.wpe.float()
    assert "transformer.wpe is float32, and the model bfloat16" in (native_unsupported_reason(loaded) or "")


def _mixed(directory: Path, dtype: torch.dtype) -> LoadedModel:
    model: Any = _load(directory, "grouped", "bfloat16")
    model.model.lm_head.to(dtype)
    return model  # type: ignore[no-any-return]

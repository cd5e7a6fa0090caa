"""The fast runner against the reference runner, and the choice between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, choose_runner
from selfspec_tune.engine.layers.linear import fuse
from selfspec_tune.engine.near_probe import NearProbe
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import lack, unserved_reason
from selfspec_tune.errors import FileFormatError, PromptError, UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.devices import cpu_computes_bfloat16
from selfspec_tune.plans import Feature, registry
from selfspec_tune.plans.families.llama import llama as llama_plan
from tests import kit
from tests.engine_kit import RUNNERS, Altered, decode, draft_step, hf_generate, load, of_type, prompt_tokens
from tests.rounded_runner import FAST, RoundedModel, check_passes

# What the rows of `tests.families` have in one way only.
SHAPES: dict[str, Callable[[Path], Path]] = {
    "a key for each query": lambda d: kit.tiny_llama(d, kv_heads=4),
    "one key for all, tied": lambda d: kit.tiny_llama(d, kv_heads=1, tied=True),
    "some biases, tied": lambda d: kit.tiny_qwen2(d, tied=True),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of each shape."""
    return load(SHAPES[request.param](tmp_path_factory.mktemp("shape")))


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    """A model of the test's own: fusing changes it."""
    return load(tiny_llama_dir)


def _skip_sets(num_layers: int) -> dict[str, SkipSet]:
    layers = tuple(range(num_layers))
    return {
        "nothing": SkipSet.empty(num_layers),
        "every attention": SkipSet(num_layers, layers),
        "every MLP": SkipSet(num_layers, (), layers),
        "everything": SkipSet(num_layers, layers, layers),
        "some": SkipSet(num_layers, (num_layers - 1,), (0,)),
    }


def _walk(runner: Runner, prompt: Sequence[int], skip_set: SkipSet) -> list[Tensor]:
    """Logits [positions, vocabulary] of every kind of call, in an order that decoding could make."""
    runner.reserve(len(prompt) + 64)
    runner.set_draft(Draft(skip_set))
    a, b, c, d, e, *more = prompt_tokens(60, seed=1)
    logits = [prefill(runner, prompt), decode(runner, a)]
    verified = runner.length
    logits += [draft_step(runner, b), draft_step(runner, c), draft_step(runner, d)]
    runner.rewind(verified)
    logits.append(runner.forward([b, c, d, e]).logits)
    runner.rewind(verified + 2)  # one draft accepted
    logits += [draft_step(runner, e), draft_step(runner, b)]
    runner.rewind(verified + 2)
    logits.append(runner.forward([e]).logits)
    logits.append(decode(runner, d))
    runner.rewind(max(1, len(prompt) // 2))  # far back, into the prompt
    logits += [decode(runner, c), runner.forward(more[:40]).logits]  # more tokens than a verification ever has
    return [step.reshape(-1, step.shape[-1]) for step in logits]


def _assert_agree(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        assert mine.argmax(-1).tolist() == other.argmax(-1).tolist()


@pytest.mark.parametrize("length", [1, 33, 34])
def test_the_runners_agree_through_every_call_and_after_rewinding(shape: LoadedModel, length: int) -> None:
    fast, reference = FastRunner(shape), ReferenceRunner(shape)
    prompt = prompt_tokens(length)
    for skip_set in _skip_sets(shape.num_layers).values():
        _assert_agree(_walk(fast, prompt, skip_set), _walk(reference, prompt, skip_set))


def test_the_runners_agree_with_one_forward_of_the_model(shape: LoadedModel) -> None:
    prompt, further = prompt_tokens(50), prompt_tokens(5, seed=2)
    with torch.inference_mode():
        logits = shape.model(input_ids=torch.tensor([[*prompt, *further]])).logits[0]
    for make in RUNNERS.values():
        runner = make(shape)
        steps = [prefill(runner, prompt), *(decode(runner, token) for token in further)]
        _assert_agree(steps, list(logits[-6:]))


def test_attention_may_come_back_in_another_memory_order(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # As CUDA's memory-efficient kernel gives it: heads innermost but one.
    attend = nn.functional.scaled_dot_product_attention

    def heads_inside(*arguments: Any, **options: Any) -> Tensor:
        return attend(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    prompt = prompt_tokens(9, seed=1)
    expected = _walk(FastRunner(loaded), prompt, SkipSet.empty(loaded.num_layers))
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", heads_inside)
    _assert_agree(_walk(FastRunner(loaded), prompt, SkipSet.empty(loaded.num_layers)), expected)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_draft_that_skips_nothing_is_the_model(loaded: LoadedModel, name: str) -> None:
    runner = RUNNERS[name](loaded)
    prefill(runner, prompt_tokens(7))
    drafted = draft_step(runner, 5)
    runner.rewind(7)
    torch.testing.assert_close(decode(runner, 5), drafted, rtol=0, atol=0)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_rewound_cache_equals_one_that_never_drafted(loaded: LoadedModel, name: str) -> None:
    runner, prompt = RUNNERS[name](loaded), prompt_tokens(20)
    prefill(runner, prompt)
    plain = [decode(runner, 8), decode(runner, 9)]
    runner.set_draft(Draft(SkipSet(4, (0, 1, 2, 3), (1,))))
    prefill(runner, prompt)
    for token in (4, 5, 6):
        draft_step(runner, token)
    runner.rewind(20)
    runner.forward([8, 4, 5])
    runner.rewind(20)
    drafted = [decode(runner, 8), decode(runner, 9)]
    for ours, theirs in zip(drafted, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", RUNNERS)
def test_the_length_counts_positions_and_rewinding_never_adds_any(loaded: LoadedModel, name: str) -> None:
    runner = RUNNERS[name](loaded)
    assert (runner.length, runner.num_layers, runner.vocabulary_size) == (0, 4, 128)
    prefill(runner, prompt_tokens(5))
    decode(runner, 3)
    draft_step(runner, 4)
    assert runner.length == 7
    runner.forward([3, 4, 5])
    assert runner.length == 10
    runner.rewind(20)
    assert runner.length == 10
    runner.rewind(4)
    assert runner.length == 4
    runner.rewind(0)
    assert runner.length == 0
    runner.synchronize()


@pytest.mark.parametrize("name", RUNNERS)
def test_a_prefill_forgets_what_came_before(loaded: LoadedModel, name: str) -> None:
    runner = RUNNERS[name](loaded)
    first = prefill(runner, prompt_tokens(12))
    prefill(runner, prompt_tokens(40, seed=3))
    decode(runner, 4)
    torch.testing.assert_close(prefill(runner, prompt_tokens(12)), first, rtol=0, atol=0)
    assert runner.length == 12


@pytest.mark.parametrize("name", RUNNERS)
def test_a_draft_vocabulary_keeps_the_first_logits(loaded: LoadedModel, name: str) -> None:
    runner, skip_set = RUNNERS[name](loaded), SkipSet(4, (1,), (2,))
    prefill(runner, prompt_tokens(6))
    runner.set_draft(Draft(skip_set))
    whole = draft_step(runner, 7)
    runner.rewind(6)
    runner.set_draft(Draft(skip_set, vocabulary=40))
    part = draft_step(runner, 7)
    assert part.shape == (40,)
    torch.testing.assert_close(part, whole[:40], rtol=1e-5, atol=1e-5)
    assert runner.forward([7]).logits.shape == (1, 128)


def test_reserving_grows_the_cache_in_steps_and_empties_it_only_then(loaded: LoadedModel) -> None:
    runner = FastRunner(loaded)
    assert runner.capacity == 0
    runner.reserve(10)
    assert runner.capacity == 256
    before = prefill(runner, prompt_tokens(30))
    runner.reserve(256)
    assert (runner.capacity, runner.length) == (256, 30)
    runner.reserve(257)
    assert (runner.capacity, runner.length) == (512, 0)
    _assert_agree([prefill(runner, prompt_tokens(30))], [before])


def test_a_prompt_longer_than_the_cache_makes_room_for_itself(loaded: LoadedModel) -> None:
    runner = FastRunner(loaded)
    prefill(runner, prompt_tokens(3))
    logits = prefill(runner, prompt_tokens(300))
    assert runner.capacity == 512
    _assert_agree([logits], [prefill(ReferenceRunner(loaded), prompt_tokens(300))])


def test_the_cache_never_outgrows_the_context(tmp_path: Path) -> None:
    loaded = load(kit.tiny_llama(tmp_path, layers=1, context=100))
    runner = FastRunner(loaded)
    runner.reserve(60)
    assert runner.capacity == 100
    assert ReferenceRunner(loaded).capacity == 100
    _assert_agree([prefill(runner, prompt_tokens(100))], [prefill(ReferenceRunner(loaded), prompt_tokens(100))])


@pytest.mark.parametrize("name", RUNNERS)
def test_more_than_the_context_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    runner = RUNNERS[name](load(kit.tiny_llama(tmp_path, layers=1, context=64)))
    runner.reserve(64)
    with pytest.raises(PromptError, match="need 65 positions; the model's context has 64") as refusal:
        runner.reserve(65)
    assert "`max_new_tokens`" in str(refusal.value)


@pytest.mark.skipif(not cpu_computes_bfloat16(), reason="torch imitates bfloat16 here, and rounds elsewhere")
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_bfloat16_is_what_float64_is_rounded_where_torch_rounds(
    checkpoint: str, length: int, request: pytest.FixtureRequest
) -> None:
    loaded = load(request.getfixturevalue(checkpoint), "bfloat16")
    runner, tokens = FastRunner(loaded), prompt_tokens(12, seed=1)
    passes = [*([token] for token in tokens[:9]), tokens[9:]]
    draft = Draft(SkipSet(4, (1,), (2,)))
    share = check_passes(runner, RoundedModel(loaded, runner, FAST), prompt_tokens(length), passes, draft)
    assert share >= 0.1  # of engines that round elsewhere no row is equal


# -- fused projections -------------------------------------------------------------------------------------------


def _storages(model: nn.Module) -> dict[int, int]:
    """Bytes of every storage that a parameter lies in, by address."""
    storages = [parameter.data.untyped_storage() for parameter in model.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _assert_adjacent(parameters: Sequence[Tensor]) -> None:
    """The parameters fill one storage, one behind the other."""
    storages = {parameter.data.untyped_storage().data_ptr() for parameter in parameters}
    assert len(storages) == 1
    offset = 0
    for parameter in parameters:
        assert parameter.data.storage_offset() == offset
        offset += parameter.numel()
    assert offset * parameters[0].element_size() == parameters[0].data.untyped_storage().nbytes()


@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_fused_parameters_are_views_of_one_storage(checkpoint: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(checkpoint))
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    memory = sum(_storages(loaded.model).values())
    FastRunner(loaded)
    for layer in loaded.sublayers.layers:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        _assert_adjacent([projection.weight for projection in qkv])
        _assert_adjacent([mlp.gate_proj.weight, mlp.up_proj.weight])
        if attention.q_proj.bias is not None:
            _assert_adjacent([projection.bias for projection in qkv])
    assert sum(_storages(loaded.model).values()) == memory
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_generate_gives_the_same_tokens_after_fusing(checkpoint: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(checkpoint))
    prompts = [prompt_tokens(9, seed=seed) for seed in range(3)]
    before = [hf_generate(loaded, prompt, Limits(24)) for prompt in prompts]
    FastRunner(loaded)
    assert [hf_generate(loaded, prompt, Limits(24)) for prompt in prompts] == before


def test_weights_stored_transposed_are_turned_once_and_generate_still_runs(tmp_path: Path) -> None:
    loaded, prompt = load(kit.tiny_of_type(tmp_path, "gpt2")), prompt_tokens(9)
    before, memory = hf_generate(loaded, prompt, Limits(12)), sum(_storages(loaded.model).values())
    first = FastRunner(loaded)
    storages = _storages(loaded.model)
    assert sum(storages.values()) == memory
    assert all(dense.weight.is_contiguous() for index in range(4) for dense in first._linear_layers(index))
    second = FastRunner(loaded)
    assert _storages(loaded.model) == storages
    assert torch.equal(prefill(first, prompt), prefill(second, prompt))
    assert hf_generate(loaded, prompt, Limits(12)) == before


def test_a_second_runner_holds_no_weight_twice(loaded: LoadedModel) -> None:
    first = FastRunner(loaded)
    storages = _storages(loaded.model)
    second = FastRunner(loaded)
    assert _storages(loaded.model) == storages
    _assert_agree([prefill(second, prompt_tokens(9))], [prefill(first, prompt_tokens(9))])


@pytest.mark.parametrize(
    "part", ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
)
def test_a_weight_changed_in_place_is_seen_by_every_runner(loaded: LoadedModel, part: str) -> None:
    runners = [FastRunner(loaded), FastRunner(loaded), ReferenceRunner(loaded)]
    before = prefill(runners[0], prompt_tokens(9))
    with torch.inference_mode():
        loaded.model.get_submodule(f"model.layers.1.{part}").weight.data.mul_(1.5)  # type: ignore[union-attr, operator]
    first, second, reference = (prefill(runner, prompt_tokens(9)) for runner in runners)
    assert (first - before).abs().max() > 0.01
    _assert_agree([first, second], [reference, reference])


def test_fusing_twice_gives_the_same_tensor() -> None:
    layers = [nn.Linear(6, rows) for rows in (4, 2, 2)]
    stacked = [torch.cat([getattr(layer, kind).detach().clone() for layer in layers]) for kind in ("weight", "bias")]
    weight, bias = fuse(layers)
    again, bias_again = fuse(layers)
    assert bias is not None
    assert bias_again is not None
    assert torch.equal(weight, stacked[0])
    assert torch.equal(bias, stacked[1])
    assert (again.data_ptr(), bias_again.data_ptr()) == (weight.data_ptr(), bias.data_ptr())
    assert torch.equal(again, weight)


def test_projections_that_are_not_neighbours_in_order_are_stacked_anew() -> None:
    layers = [nn.Linear(6, rows, bias=False) for rows in (4, 4)]
    fuse(layers)
    backwards = torch.cat([layers[1].weight.detach(), layers[0].weight.detach()])
    weight, bias = fuse(layers[::-1])
    assert bias is None
    assert torch.equal(weight, backwards)


def test_projections_of_which_some_have_a_bias_are_refused() -> None:
    with pytest.raises(ValueError, match="some of the projections have a bias"):
        fuse([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])


# -- the choice --------------------------------------------------------------------------------------------------


def test_a_model_without_a_plan_falls_back_to_the_reference_with_a_notice(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(registry.FAMILIES, "llama")
    reason, notices = "no plan of the architecture llama is known", list[str]()
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert len(notices) == 1
    assert reason in notices[0]
    assert "reference runner" in notices[0]
    with pytest.raises(UnsupportedModelError, match=f"`runner` fast cannot serve .*{reason}"):
        choose_runner(loaded, "fast", notices.append)


def test_what_an_engine_lacks_is_said_in_words(tmp_path: Path) -> None:
    model = of_type(tmp_path, "qwen3", head_dim=16).model
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    assert unserved_reason(model, frozenset()) == "our own loops have no norms of queries and keys"
    model.config.update(window)
    assert unserved_reason(model, frozenset(), "the native kernels") == (
        "the native kernels have no norms of queries and keys and no sliding windows"
    )
    three = (Feature.QK_NORM, Feature.WINDOW, Feature.SINKS)
    assert lack(three, "they") == "they have no norms of queries and keys, no sliding windows and no attention sinks"


def test_a_model_that_loads_and_cannot_run_is_told_with_what_its_configuration_states(tmp_path: Path) -> None:
    file = kit.tiny_of_type(tmp_path / "m", "mixtral") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_experts_per_tok": 9}))
    with pytest.raises(FileFormatError, match=r"forward pass in transformers fails: .* it sends a token to 9 of its 2"):
        choose_runner(load(file.parent))


def _helium(directory: Path) -> Path:
    """The same modules as Llama, another computation: neighbouring dimensions are rotated together."""
    config = AutoConfig.for_model(
        "helium",
        hidden_size=kit.HIDDEN,
        intermediate_size=2 * kit.HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=128,
        max_position_embeddings=1024,
    )
    return kit.save_random(config, directory)


def test_a_plan_that_only_looks_right_is_caught_by_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, notices = load(_helium(tmp_path)), list[str]()
    monkeypatch.setitem(registry.FAMILIES, "helium", llama_plan)
    assert unserved_reason(loaded.model, FastRunner.SERVES) is None
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert "its logits differ from the reference by" in notices[0]
    with pytest.raises(UnsupportedModelError, match="its logits differ from the reference"):
        choose_runner(loaded, "fast")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_the_fast_runner_is_chosen_where_it_proves_equal(
    checkpoint: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    loaded, notices = load(request.getfixturevalue(checkpoint), dtype), list[str]()
    assert isinstance(choose_runner(loaded, "auto", notices.append, clock=lambda: 0.0), FastRunner)
    assert isinstance(choose_runner(loaded, "fast", notices.append), FastRunner)
    assert isinstance(choose_runner(loaded, "reference", notices.append), ReferenceRunner)
    assert notices == []


def test_an_unknown_runner_is_a_usage_error(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="`runner` quick: expected auto, native, graphs, fast or reference"):
        choose_runner(loaded, "quick")


class _ShiftedLogits(Altered, FastRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits + 0.01 * (kind == "step")


class _DraftsWithTheWholeModel(FastRunner):
    def set_draft(self, draft: Draft) -> None:
        super().set_draft(Draft(SkipSet.empty(self.num_layers)))


class _SkipsTheNextLayer(FastRunner):
    def set_draft(self, draft: Draft) -> None:
        flags = draft.skip_set.to_flags()
        super().set_draft(Draft(SkipSet.from_flags([*flags[-2:], *flags[:-2]])))


class _VerifiesInAnotherOrder(Altered, FastRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits.roll(1, 0) if kind == "verification" else logits


class _NeverRewinds(FastRunner):
    def rewind(self, length: int) -> None: ...


class _RewindsOneTooFew(FastRunner):
    def rewind(self, length: int) -> None:
        super().rewind(length + 1)


WRONG = [
    _ShiftedLogits,
    _DraftsWithTheWholeModel,
    _SkipsTheNextLayer,
    _VerifiesInAnotherOrder,
    _NeverRewinds,
    _RewindsOneTooFew,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_probe_catches_a_runner_that_is_subtly_wrong(
    loaded: LoadedModel, wrong: type[FastRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NearProbe(loaded, ReferenceRunner(loaded)).difference(FastRunner(loaded)) < 1e-5
    assert NearProbe(loaded, ReferenceRunner(loaded)).difference(wrong(loaded)) > 5e-4
    _assert_not_chosen(loaded, wrong, monkeypatch)


class _NotANumber(Altered, FastRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits * float("nan") if kind == "step" else logits


def test_the_probe_catches_logits_that_are_no_numbers(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NearProbe(loaded, ReferenceRunner(loaded)).difference(_NotANumber(loaded)) == float("inf")
    _assert_not_chosen(loaded, _NotANumber, monkeypatch)


class _WrongInLongPrompts(Altered, FastRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits + 0.1 * (kind == "prefill" and len(tokens) > 33)


def test_the_probe_reaches_the_attention_of_long_prompts(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_not_chosen(loaded, _WrongInLongPrompts, monkeypatch)


def _assert_not_chosen(loaded: LoadedModel, wrong: type[FastRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FastRunner", "NativeRunner"):
        monkeypatch.setattr(f"selfspec_tune.engine.choice.{name}", wrong)
    notices: list[str] = []
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert len(notices) == 2  # of the native kernels, and of the fast runner
    assert all("differ from the reference" in notice for notice in notices)


def test_a_cache_that_does_not_fit_is_refused_with_a_remedy(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FastRunner(loaded)

    def out_of_memory(*arguments: object, **settings: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(torch, "zeros", out_of_memory)
    with pytest.raises(
        UsageError, match=r"No memory for a cache of 512 positions on cpu\..*Tried to allocate 9 GiB"
    ) as why:
        runner.reserve(400)
    assert "`max_new_tokens`" in str(why.value)

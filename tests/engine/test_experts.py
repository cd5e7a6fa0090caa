"""Mixtures of experts: our own computation of a block against transformers', and drafts with fewer experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.layers.cache import CachePlace
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.lowbit import Parts, make_copy
from selfspec_tune.engine.layers.quantize import Meter
from selfspec_tune.engine.layers.router import Router
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.errors import UsageError
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan, DecoderPlan, ExpertsPlan, LayerPlan, MlpPlan
from selfspec_tune.plans.decoder import EmbeddingPlan
from selfspec_tune.plans.mlp import RouterPlan, Score
from selfspec_tune.search.setup import open_setup
from tests import kit
from tests.engine_kit import RUNNERS, decode, draft_step, load, needs_compiler, prompt_tokens, threads_of_torch
from tests.search_kit import Listener, prompt_file, search_request

HIDDEN, WIDTH = 64, 32
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "head_dim": 32,
    "pad_token_id": 0,
}
NOWHERE = CachePlace(torch.empty(0), {}, {}, {})


def _mlp(path: str) -> MlpPlan:
    return MlpPlan(silence=(), width=WIDTH, inputs=(f"{path}.gate_proj", f"{path}.up_proj"), output=f"{path}.down_proj")


def _experts(router: RouterPlan, count: int, chosen: int, at: str = "mlp", **fields: Any) -> ExpertsPlan:
    return ExpertsPlan(
        silence=(at,),
        count=count,
        chosen=chosen,
        width=WIDTH,
        router=router,
        gate_up=f"{at}.experts.gate_up_proj",
        down=f"{at}.experts.down_proj",
        **fields,
    )


# By transformers' model type: settings, and the plan of the only layer's mixture.
BLOCKS: dict[str, tuple[dict[str, Any], ExpertsPlan]] = {
    "mixtral": (
        {"num_local_experts": 5, "num_experts_per_tok": 3},
        _experts(RouterPlan(weight="mlp.gate.weight", renormalise=True), 5, 3),
    ),
    "qwen2_moe": (
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": WIDTH,
            "shared_expert_intermediate_size": WIDTH,
        },
        _experts(
            RouterPlan(weight="mlp.gate.weight", is_rounded=True),
            *(6, 2),
            shared=_mlp("mlp.shared_expert"),
            shared_gate="mlp.shared_expert_gate",
        ),
    ),
    "glm4_moe": (
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": WIDTH,
            "first_k_dense_replace": 0,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.7,
        },
        _experts(
            RouterPlan(
                weight="mlp.gate.weight",
                is_float32=True,
                score=Score.SIGMOID,
                choice_bias="mlp.gate.e_score_correction_bias",
                groups=4,
                kept_groups=2,
                renormalise=True,
                sum_epsilon=1e-20,
                scale=1.7,
            ),
            *(8, 3),
            shared=_mlp("mlp.shared_experts"),
        ),
    ),
    "gpt_oss": (
        {"num_local_experts": 5, "num_experts_per_tok": 2, "swiglu_limit": 0.7, "max_position_embeddings": 131072},
        _experts(
            RouterPlan(weight="mlp.router.weight", bias="mlp.router.bias", is_chosen_first=True, is_rounded=True),
            *(5, 2),
            is_transposed=True,
            is_interleaved=True,
            biases=("mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"),
            clamp=0.7,
            gate_slope=1.702,
        ),
    ),
    "llama4_text": (
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": WIDTH},
        _experts(
            RouterPlan(weight="feed_forward.router.weight", is_chosen_first=True, score=Score.SIGMOID, on_input=True),
            *(4, 2, "feed_forward"),
            is_transposed=True,
            shared=_mlp("feed_forward.shared_expert"),
        ),
    ),
}


class Block(Experts):
    """The mixture alone: what it gives takes the stream's place."""

    def _add(self, stream: Stream, output: Tensor) -> Stream:
        return Stream(output)


def block_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[Block, nn.Module]:
    """Our own computation of a family's mixture, and the module that it is of."""
    settings, plan = BLOCKS[name]
    model = kit.random_model(AutoConfig.for_model(name, **SIZES | settings)).to(dtype)
    attention = AttentionPlan(silence=(), num_heads=2, num_kv_heads=2, head_size=32, scale=1, inputs=(), output="")
    decoder = DecoderPlan(
        model_type=name,
        layers_path="model.layers",
        hidden_size=HIDDEN,
        embedding=EmbeddingPlan(path="model.embed_tokens"),
        layers=(LayerPlan(attention=attention, mlp=plan),),
        norm=None,
    )
    return Block(plan, BoundModel(model, decoder), 0), model.get_submodule(f"model.layers.0.{plan.silence[0]}")


def inputs(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).to(dtype)


@torch.inference_mode()
def theirs(module: nn.Module, hidden: Tensor) -> Tensor:
    found: Any = module(hidden[None])
    given: Tensor = found[0] if isinstance(found, tuple) else found
    return given.reshape(hidden.shape)


@torch.inference_mode()
def ours(block: Experts, hidden: Tensor, *, is_captured: bool = False) -> Tensor:
    stream = Stream(hidden)
    return (block.at(stream, NOWHERE) if is_captured else block(stream, 0)).hidden


@pytest.mark.parametrize("name", BLOCKS)
def test_a_mixture_is_what_transformers_computes(name: str) -> None:
    block, module = block_of(name)
    hidden = inputs(37)
    expected = theirs(module, hidden)
    for found in (ours(block, hidden), ours(block, hidden, is_captured=True)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    one_by_one = torch.cat([ours(block, row[None]) for row in hidden])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_mixture_rounds_to_bfloat16_where_transformers_does(name: str) -> None:
    """Else other experts would be chosen now and then, and sums be off throughout."""
    block, module = block_of(name, torch.bfloat16)
    hidden = inputs(37, torch.bfloat16)
    found, expected = ours(block, hidden).float(), theirs(module, hidden).float()
    assert (found != expected).float().mean() < 0.1  # products are summed in another order
    is_off = (found - expected).abs().amax(-1) > 0.02 * expected.abs().max()
    assert is_off.sum() < 2  # of logits that round to the same, transformers takes any


@pytest.mark.parametrize("name", BLOCKS)
def test_fewer_experts_are_the_best_by_the_model_s_own_router(name: str) -> None:
    block, module = block_of(name)
    hidden = inputs(9)
    for other in module.modules():
        if hasattr(other, "top_k"):
            other.top_k = 1  # type: ignore[assignment]
    torch.testing.assert_close(ours(block.with_chosen(1), hidden), theirs(module, hidden), rtol=1e-4, atol=1e-4)
    assert block.with_chosen(99).chosen == block.chosen > 1
    assert torch.equal(ours(block.with_chosen(99), hidden), ours(block, hidden))


@pytest.mark.parametrize("name", BLOCKS)
def test_many_tokens_are_computed_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, _ = block_of(name)
    whole = ours(block, inputs(23))
    monkeypatch.setattr("selfspec_tune.engine.layers.experts._MOST_TOKENS", 7)
    torch.testing.assert_close(ours(block, inputs(23)), whole)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
@pytest.mark.parametrize("name", ["glm4_moe", "gpt_oss"])
def test_copies_of_experts_are_computed_part_by_part(name: str, precision: Precision) -> None:
    block, module = block_of(name)
    hidden = inputs(11)
    copies = [make_copy(dense, precision) for dense in block.projections]
    drafted = block.with_projections(*copies)
    found = ours(drafted, hidden)
    torch.testing.assert_close(ours(drafted, hidden, is_captured=True), found, rtol=1e-4, atol=1e-4)
    for dense, copy in zip(block.projections, copies, strict=True):  # the copies' own values in the model's place
        own = dense.weight.unflatten(0, (dense.parts, -1))
        for number, weight in enumerate(own):
            part: Any = copy.part(number) if isinstance(copy, Parts) else copy
            weight.copy_(part(torch.eye(dense.weight.shape[1])).T)
    torch.testing.assert_close(found, theirs(module, hidden), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_a_copy_of_the_only_expert_is_computed(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_local_experts": 1, "num_experts_per_tok": 1}
    monkeypatch.setitem(BLOCKS, "mixtral", (settings, _experts(RouterPlan(weight="mlp.gate.weight"), 1, 1)))
    block, _ = block_of("mixtral")
    hidden = inputs(5)
    drafted = block.with_projections(*(make_copy(dense, precision) for dense in block.projections))
    expected, found = ours(block, hidden), ours(drafted, hidden)
    assert (found - expected).norm() / expected.norm() < (0.02 if precision is Precision.INT8 else 0.3)


def test_nothing_is_noted_of_what_experts_read() -> None:
    block, _ = block_of("qwen2_moe")
    meters = [Meter(dense) for dense in block.projections]
    found = ours(block.with_projections(*meters), inputs(12))
    assert torch.equal(found, ours(block, inputs(12)))
    assert [meter.has_seen for meter in meters] == [False, False, True, True]


def router(logits: list[float], **fields: Any) -> tuple[Router, Tensor]:
    """A router that gives a token these logits, and the token."""
    bound: Any = SimpleNamespace(tensor=lambda path, layer: torch.tensor(logits)[:, None])
    return Router(RouterPlan(weight="", **fields), bound, 0), torch.ones(1, 1)


@pytest.mark.parametrize("name", ["glm4_moe", "gpt_oss"])
def test_a_pass_converts_no_weight_of_a_router(name: str) -> None:
    """Of what is computed in float32, and of what is not."""
    block, _ = block_of(name, torch.bfloat16)
    assert block.plan.router.is_float32 is (name == "glm4_moe")
    with Converted() as converted:
        ours(block, inputs(3, torch.bfloat16))
    assert converted.shapes
    assert not {(block.plan.count, HIDDEN), (block.plan.count,)} & converted.shapes


class Converted(TorchDispatchMode):
    """Notes the shapes of what is converted to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy):
            self.shapes.add(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_of_equal_experts_the_first_are_chosen() -> None:
    same, token = router([1.0] * 64)
    assert same(token, 5)[0].tolist() == [[0, 1, 2, 3, 4]]
    other, token = router([2.0, 1.0, 3.0, 3.0, 2.0, 3.0])
    assert other(token, 5)[0].tolist() == [[2, 3, 5, 0, 4]]


def test_the_best_group_is_told_by_its_two_best() -> None:
    found, token = router([4.0, 0.0, 3.0, 2.0, 1.0, 1.0], groups=3, kept_groups=1, is_chosen_first=True)
    assert found(token, 2)[0].tolist() == [[2, 3]]


def test_weights_are_divided_by_no_less_than_the_least_sum() -> None:
    for least in (0.0, 4.0):
        found, token = router([0.0] * 4, score=Score.SIGMOID, renormalise=True, least_sum=least, scale=2.0)
        assert found(token, 2)[1][0].tolist() == pytest.approx([2.0 * 0.5 / max(1.0, least)] * 2)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose tokens go to three of eight experts, and to a shared one; read only."""
    folder = tmp_path_factory.mktemp("mixture")
    settings = BLOCKS["glm4_moe"][0] | {"num_hidden_layers": 3, "first_k_dense_replace": 1, "vocab_size": 128}
    common = SIZES | settings | {"max_position_embeddings": 256, "bos_token_id": kit.BOS, "eos_token_id": kit.EOS}
    return kit.save_random(AutoConfig.for_model("glm4_moe", **common), folder)


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
def test_a_draft_with_fewer_experts_is_the_reference_s(mixture: Path, name: str) -> None:
    loaded = load(mixture)
    found: dict[str, list[Tensor]] = {}
    for kind in (name, "reference"):
        runner, logits = RUNNERS[kind](loaded), found.setdefault(kind, [])
        runner.reserve(40)
        for experts in (None, 1, 2, 3):
            runner.set_draft(Draft(SkipSet(3, (1,), ()), experts=experts))
            prefill(runner, prompt_tokens(20))
            logits.append(draft_step(runner, 5).float())
        runner.rewind(20)
        logits.append(decode(runner, 6).float())  # which goes to all of them
    for ours_, theirs_ in zip(found[name], found["reference"], strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-3, atol=1e-3)
    as_model, one, two, three, _ = found[name]
    assert not torch.allclose(one, as_model, atol=1e-3)
    assert not torch.allclose(two, as_model, atol=1e-3)
    torch.testing.assert_close(three, as_model, rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_drafts_have_the_same_bits_for_any_number_of_tokens_and_threads(mixture: Path, dtype: str) -> None:
    loaded = load(mixture, dtype)
    runner, tokens, found = NativeRunner(loaded), prompt_tokens(40, seed=3), []
    draft = Draft(SkipSet.empty(3), precision=DraftPrecision.uniform(3, Precision.INT4, Precision.INT8), experts=2)
    for threads, sizes in ((1, (1, 32)), (2, (7,)), (3, (32,))):
        with threads_of_torch(threads):
            runner.release()
            runner.reserve(100)
        runner.set_draft(draft)
        prefill(runner, prompt_tokens(9))
        for size in sizes:
            runner.rewind(9)
            pieces = (tokens[at : at + size] for at in range(0, len(tokens), size))
            found.append(torch.cat([runner.forward(piece, is_draft=True).logits for piece in pieces]))
    assert all(torch.equal(logits, found[0]) for logits in found[1:])


@pytest.mark.parametrize("name", RUNNERS)
def test_experts_that_are_not_there_are_refused(mixture: Path, tiny_llama_dir: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"to 4 experts a token, and .* itself to 3\. Give `experts` 1 to 3, or same"):
        RUNNERS[name](load(mixture)).set_draft(Draft(SkipSet.empty(3), experts=4))
    unknown = r"to 1 expert a token, but .* is no mixture of experts that is known here\. Leave `experts` out"
    with pytest.raises(UsageError, match=unknown):
        RUNNERS[name](load(tiny_llama_dir)).set_draft(Draft(SkipSet.empty(4), experts=1))


def test_a_search_of_a_mixture_proposes_fewer_experts(mixture: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    for model, asked, expected in (
        (mixture, "auto", (None, 2, 1)),
        (mixture, "same", (None,)),
        (mixture, "2", (2,)),
        (tiny_llama_dir, "auto", (None,)),
    ):
        request = search_request(tmp_path / "study", model, prompt_file(tmp_path / "prompts.jsonl"))
        setting = open_setup(replace(request, draft=replace(request.draft, experts=asked)), Listener())
        assert setting.space.experts == expected
        assert setting.space.base.experts == expected[0]
        assert setting.config().draft.get("experts") == (None if expected == (None,) else asked)

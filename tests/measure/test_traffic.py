"""Bytes that steps read, against what the configuration says by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.measure.traffic import Traffic, _by_structure, traffic_of
from tests import kit
from tests.engine_kit import load
from tests.families import FAMILIES

# The kit's Llama: width 64, 4 heads of 16, 2 of keys and values, MLP 128, vocabulary 128, 4 layers; float32.
ATTENTION = 4 * (64 * 64 + 2 * 32 * 64 + 64 * 64)
MLP = 4 * (3 * 64 * 128)
NORM = 4 * 64
HEAD = 4 * 128 * 64
ROW = 4 * 64
POSITION = 4 * 2 * 2 * 16
LAYER = ATTENTION + MLP + 2 * NORM


@pytest.fixture(scope="module")
def traffic(tiny_llama_dir: Path) -> Traffic:
    return traffic_of(load(tiny_llama_dir))


def test_a_decode_step_reads_every_weight_once_and_the_cache(traffic: Traffic) -> None:
    assert traffic.full_step(0) == 4 * LAYER + NORM + HEAD + ROW
    assert traffic.full_step(100) - traffic.full_step(0) == 4 * 100 * POSITION


def test_a_verification_reads_no_more_than_further_embedding_rows(traffic: Traffic) -> None:
    assert traffic.full_step(100, 9) - traffic.full_step(100) == 8 * ROW


def test_a_draft_step_reads_what_it_keeps(traffic: Traffic) -> None:
    whole = traffic.full_step(100)
    assert traffic.draft_step(Draft(SkipSet.empty(4)), 100) == whole
    skipping = Draft(SkipSet(4, (1, 2), (3,)))
    left_out = 2 * (ATTENTION + NORM + 100 * POSITION) + MLP + NORM
    assert traffic.draft_step(skipping, 100) == whole - left_out
    assert traffic.draft_step(Draft(SkipSet.empty(4), vocabulary=32), 100) == whole - HEAD * 3 / 4


def test_a_copy_at_lower_precision_is_smaller_but_its_norms_are_not(traffic: Traffic) -> None:
    draft = Draft(SkipSet.empty(4), precision=DraftPrecision.uniform(4, Precision.INT8, Precision.INT8))
    matrices = 4 * (ATTENTION + MLP) + HEAD
    assert traffic.draft_step(draft, 0) == traffic.full_step(0) - 3 / 4 * matrices


def test_a_tied_head_counts_once(tmp_path: Path, traffic: Traffic) -> None:
    tied = traffic_of(load(kit.tiny_llama(tmp_path / "tied", tied=True)))
    assert tied.full_step(10) == traffic.full_step(10)


def test_the_count_follows_the_number_format_and_counts_biases(tmp_path: Path, tiny_llama_dir: Path) -> None:
    whole = traffic_of(load(tiny_llama_dir))
    assert traffic_of(load(tiny_llama_dir, "bfloat16")).full_step(10) == whole.full_step(10) / 2
    biased = traffic_of(load(kit.tiny_qwen2(tmp_path / "qwen2")))
    assert biased.full_step(0) - whole.full_step(0) == 4 * 4 * (64 + 2 * 32)


def test_in_one_format_a_model_is_as_large_whatever_it_is_held_in(tmp_path: Path, tiny_llama_dir: Path) -> None:
    held = traffic_of(load(tiny_llama_dir, "bfloat16"))
    for dtype in ("float32", "float16", "bfloat16"):
        assert traffic_of(load(tiny_llama_dir, dtype), torch.bfloat16) == held
    loaded = load(kit.tiny_of_type(tmp_path / "codegen", "codegen"))  # which has no plan
    assert traffic_of(loaded, torch.bfloat16).full_step(50) == traffic_of(loaded).full_step(50) / 2


def test_packed_weights_are_counted_as_what_they_stand_for(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # its kernels would be compiled
    packed = load(kit.pack_ternary(Path(shutil.copytree(tiny_llama_dir, tmp_path / "packed"))))
    assert packed.is_quantised
    plain = traffic_of(load(tiny_llama_dir), torch.bfloat16)
    assert traffic_of(packed, torch.bfloat16).full_step(10) == plain.full_step(10)


def test_an_attention_in_a_window_reads_no_more_than_the_window(tmp_path: Path, traffic: Traffic) -> None:
    settings = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    windows = traffic_of(load(kit.tiny_qwen2(tmp_path / "windows", **settings)))
    assert windows.position == traffic.position == 4 * POSITION
    for context in (0, 5, 7):
        assert windows.full_step(context) - windows.full_step(0) == context * 4 * POSITION
    assert windows.full_step(100) - windows.full_step(0) == (100 + 3 * 7) * POSITION
    skipping = Draft(SkipSet(4, (0,)))
    assert windows.draft_step(skipping, 100) - windows.draft_step(skipping, 0) == 3 * 7 * POSITION


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_model_without_a_plan_is_counted_by_its_modules(tmp_path: Path, kind: str) -> None:
    loaded = load(kit.tiny_of_type(tmp_path / kind, kind))
    found = _by_structure(loaded)
    assert found.full_step(100) - found.full_step(0) == 100 * found.position
    assert found.position == 2 * 4 * 2 * 64  # two layers, keys and values of the whole width in float32
    embedding = loaded.model.get_input_embeddings().weight
    assert (
        0
        < found.full_step(0)
        < 4 * sum(parameter.numel() for parameter in loaded.model.parameters()) + 4 * len(embedding)
    )


def family(name: str, directory: Path) -> tuple[Traffic, dict[str, int]]:
    """The traffic of a family's tiny checkpoint, and the bytes of its parameters by name."""
    loaded = load(kit.save_random(AutoConfig.for_model(**FAMILIES[name].config), directory))
    sizes = {name: 4 * parameter.numel() for name, parameter in loaded.model.named_parameters()}
    return traffic_of(loaded), sizes


def test_every_tensor_is_read_once_but_the_embedding_and_the_experts(tmp_path: Path) -> None:
    for name in ("gpt_neox", "gemma2", "opt"):  # all with the embedding as the head
        found, sizes = family(name, tmp_path / name)
        rest = sum(size for path, size in sizes.items() if "embed" not in path)
        head = 4 * FAMILIES[name].config["vocab_size"] * FAMILIES[name].config["hidden_size"]
        assert found.full_step(0) == rest + head + found.row
        assert not found.has_experts


def test_of_experts_those_are_read_that_some_token_goes_to(tmp_path: Path) -> None:
    found, sizes = family("mixtral", tmp_path)
    config = FAMILIES["mixtral"].config
    count, chosen = config["num_local_experts"], config["num_experts_per_tok"]
    routed = sum(size for path, size in sizes.items() if ".experts." in path)
    rest = sum(sizes.values()) - routed - sizes["model.embed_tokens.weight"]
    for num_tokens in (1, 2, 9):
        share = 1 - (1 - chosen / count) ** num_tokens
        assert found.full_step(0, num_tokens) == pytest.approx(rest + share * routed + num_tokens * found.row)
    assert found.draft_step(Draft(SkipSet.empty(3)), 0) == pytest.approx(found.full_step(0))
    for fewer in range(1, chosen):
        draft = Draft(SkipSet.empty(3), experts=fewer)
        assert found.draft_step(draft, 0) == pytest.approx(rest + fewer / count * routed + found.row)
    assert (found.has_experts, found.counts_all) == (True, False)


def test_shared_experts_routers_and_dense_layers_are_read_by_every_token(tmp_path: Path) -> None:
    found, sizes = family("qwen2_moe", tmp_path)
    routed = sum(size for path, size in sizes.items() if ".experts." in path)
    one, all_ = found.full_step(0), found.full_step(0, 10_000) - 9_999 * found.row
    count, chosen = (FAMILIES["qwen2_moe"].config[key] for key in ("num_experts", "num_experts_per_tok"))
    assert all_ - one == pytest.approx((1 - chosen / count) * routed)


def test_without_a_plan_all_experts_are_counted(tmp_path: Path) -> None:
    loaded = load(kit.tiny_of_type(tmp_path, "mixtral"))
    found = _by_structure(loaded)
    assert (found.has_experts, found.counts_all) == (True, True)
    assert found.full_step(0) == pytest.approx(traffic_of(loaded).full_step(0, 1000) - 999 * found.row)

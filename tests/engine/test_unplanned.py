"""What no plan describes runs on the reference runner, which says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from selfspec_tune.engine import Limits, Sampler, autoregressive, choose_runner
from selfspec_tune.plans.refused import UNPLANNED
from tests import kit
from tests.engine_kit import load

_COMMON: dict[str, Any] = {"vocab_size": 128, "bos_token_id": kit.BOS, "eos_token_id": kit.EOS, "pad_token_id": 0}
_SIZES = {
    **_COMMON,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
_LATENT = {
    **_SIZES,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}
_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT_EXPERTS = {**_LATENT, **_EXPERTS, "n_shared_experts": 1}
_GEMMA4 = {
    **_SIZES,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 128,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
_SEES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 2,
    "intermediate_size": 32,
    "vision_output_dim": 32,
    "intermediate_layers_indices": [0],
    "image_size": 28,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "sarvam_mla"), _LATENT_EXPERTS),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _GEMMA4),
    "gemma4": {"text_config": _GEMMA4},
    "beam": _SIZES,
    "codegen": {**_COMMON, "n_head": 4, "n_layer": 2, "n_embd": 64, "rotary_dim": 8, "n_positions": 256},
    "diffllama": _SIZES,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gpt_neox_japanese": {**_SIZES, "intermediate_multiple_size": 1},
    "laguna": {**_SIZES, **_EXPERTS},
    "mimo_v2_flash": {**_SIZES, **_EXPERTS, "num_attention_heads": 8, "head_dim": 24, "v_head_dim": 16},
    "mllama": {"text_config": {**_SIZES, "cross_attention_layers": [1]}, "vision_config": _SEES},
    "modernbert-decoder": {**_SIZES, "global_attn_every_n_layers": 2, "local_attention": 8},
    "phimoe": {**_SIZES, **_EXPERTS},
}
QUICK = ("deepseek_v3", "mllama", "phimoe")  # of CI; the others show nothing that these do not


def test_every_family_without_a_plan_is_here() -> None:
    assert UNPLANNED.keys() - CONFIGS.keys() == {"mllama_text_model"}  # as which an mllama is loaded


@pytest.mark.parametrize(
    "model_type", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CONFIGS]
)
def test_it_runs_on_the_reference_runner_which_says_why(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    if model_type == "mllama":  # of which transformers saves the text alone under another name
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
        kit.tiny_tokenizer(128).save_pretrained(tmp_path)
    else:
        kit.save_random(config, tmp_path)
    said: list[str] = []
    runner = choose_runner(load(tmp_path), "auto", said.append)
    assert runner.name == "reference"
    assert f"runs on the reference runner: {UNPLANNED[model_type]}." in said[-1]
    assert autoregressive(runner, [5, 6, 7], Limits(4), Sampler()).tokens

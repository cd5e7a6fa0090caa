"""Plans of every family: each tensor claimed once, each setting that its code reads planned or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.bound import bind
from selfspec_tune.plans import features, plan_of
from selfspec_tune.plans.registry import FAMILIES as PLANNED
from tests.families import FAMILIES

# What a model's code reads without computing another function, and biases, which are used where they are found.
_NEUTRAL = {
    *("_name_or_path", "dtype", "is_encoder_decoder", "return_dict", "output_attentions", "output_hidden_states"),
    *("vocab_size", "output_vocab_size", "pad_token_id", "initializer_range", "tie_word_embeddings"),
    *("max_position_embeddings", "output_router_logits", "router_aux_loss_coef"),
    *("attention_dropout", "attn_pdrop", "dropout", "embd_pdrop", "embedding_dropout", "hidden_dropout", "layerdrop"),
    *("resid_pdrop", "residual_dropout", "init_std", "max_seq_len", "router_jitter_noise"),
    *(
        "attention_bias",
        "attention_out_bias",
        "mlp_bias",
        "use_bias",
        "use_qkv_bias",
        "enable_bias",
        "bias",
        "qkv_bias",
    ),
    *("reorder_and_upcast_attn", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "activation_dropout", "embed_dropout", "resid_dropout"),
    *("audio_config", "vision_config"),
}
# Read and put aside: Gemma 3 passes its cap on to nothing, masks follow `layer_types`, nothing is chosen of no experts,
# Falcon's kinds pass by each other's settings, and a sum in float32 of two numbers rounds as one in their type does.
_UNUSED = {
    "gemma3": {"attn_logit_softcapping"},
    "gemma3_text": {"attn_logit_softcapping"},
    "granitemoehybrid": {"num_experts_per_tok"},
    "phi3": {"original_max_position_embeddings"},  # that of its rope_parameters
    "smollm3": {"use_sliding_window"},
    "gpt_neo": {"attention_types"},  # its ``attention_layers``
    "exaone4": {"sliding_window_pattern"},
    "exaone_moe": {"sliding_window_pattern"},
    "falcon": {"multi_query", "num_kv_heads", "rope_parameters"},
    "hy_v3": {"enable_moe_fp32_combine"},
    "qwen2_moe": {"sliding_window"},
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(**(FAMILIES[name].config | changes))


def bare_model(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


class Read(dict[str, Any]):
    """A configuration that notes which of its entries are asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@contextmanager
def noting_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of all attributes that configurations are asked for meanwhile."""
    names: set[str] = set()
    read = PreTrainedConfig.__getattribute__

    def note(config: PreTrainedConfig, name: str) -> Any:
        names.add(name)
        return read(config, name)

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedConfig, "__getattribute__", note)
        yield names


@each_family
def test_every_tensor_is_claimed_once_and_no_feature_is_lost(name: str) -> None:
    plan = bind(bare_model(config_of(name))).plan
    assert features(plan) == FAMILIES[name].needs


@each_family
def test_the_plan_of_the_saved_configuration_is_the_models(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    config.save_pretrained(tmp_path)
    assert plan_of(AutoConfig.from_pretrained(tmp_path).to_dict()) == plan_of(config.to_dict())


_MORE_THAN_DEFAULTS = {
    "dots1": {"n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 1},
    "granitemoehybrid": {"num_hidden_layers": 1, "layer_types": ["full_attention"], "num_local_experts": 0},
}


@pytest.mark.parametrize("model_type", PLANNED)
def test_a_configuration_with_its_familys_own_settings_alone_is_read(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **_MORE_THAN_DEFAULTS.get(model_type, {}))
    assert plan_of(config.to_dict()).num_layers == config.get_text_config().num_hidden_layers


@each_family
def test_what_the_code_reads_of_a_configuration_the_plan_reads_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name)
    with noting_reads(monkeypatch) as read, torch.no_grad():
        AutoModelForCausalLM.from_config(config).eval()(torch.arange(4)[None], use_cache=True)
    whole, text = Read(config.to_dict()), Read(config.get_text_config().to_dict())
    if "text_config" in whole:
        whole["text_config"] = text
        plan_of(whole)
    else:
        plan_of(text)
    unread = (read & set(text)) - text.names - _NEUTRAL - _UNUSED.get(config.model_type, set())
    assert unread == set()


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, "factor": 2.0, **more}}


_MELLUM_ROPE = dict.fromkeys(
    ("full_attention", "sliding_attention"), _rope("default", partial_rotary_factor=0.5)["rope_parameters"]
)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", _rope("proportional"), "its rotary positions (proportional) are none of default,"),
        ("llama", _rope("linear", partial_rotary_factor=0.5), "rotates 16 dimensions of a head, where 32 are planned"),
        ("llama", {"hidden_act": "laplace"}, "its activation laplace is none of"),
        ("mistral-window", {"sliding_window": 0}, "its attention sees a window of 0 positions"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "its layers of type chunked_attention are none of"),
        ("gemma", {"use_bidirectional_attention": True}, "its attention sees later positions too"),
        ("olmo3", {"rope_parameters": {"full_attention": _rope("dynamic")["rope_parameters"]}}, "(dynamic) depend on"),
        ("granitemoehybrid", {"num_local_experts": 2}, "its layers have experts beside an MLP of their own"),
        ("stablelm", {"head_dim": 32}, "rotates 16 dimensions of a head, where 8 are planned"),
        ("helium", {"head_dim": 32}, "o_proj is 96 × 96, where 96 × 192 is planned"),
        ("bitnet", {"head_dim": 32}, "attn_sub_norm is 96, where 192 is planned"),
        ("gpt2", {"add_cross_attention": True}, "it attends to an encoder (add_cross_attention)"),
        ("gptj", {"activation_function": "tanh"}, "its activation tanh is none of"),
        ("opt", {"do_layer_norm_before": False}, "its norms are on the stream itself (do_layer_norm_before is false)"),
        ("opt", {"word_embed_proj_dim": 64}, "its embeddings have another width than its layers"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "it adds to the normalised stream"),
        ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "it leaves out biases (slow_but_exact"),
        ("falcon-new", {"parallel_attn": False}, "its new_decoder_architecture is without parallel_attn"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "its num_ln_in_parallel_attn is 2, which has no forward"),
        ("mellum", {"rope_parameters": _MELLUM_ROPE}, "its rotary positions are for a part of a head (0.5)"),
        ("llama4_text", {"attention_chunk_size": 0}, "its layer 0 is of type chunked_attention with chunks of 0"),
        ("dots1", {"layer_types": ["chunked_attention"] * 4}, "its layers of type chunked_attention are none of"),
    ],
)
def test_a_wrong_variant_is_refused_by_name(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        bind(bare_model(config_of(name, **changes)))
    assert reason in str(refusal.value)

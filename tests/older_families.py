"""Rows of `tests.families` for the decoders before Llama and those with sub-layers side by side."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans import Feature as F
from tests.family import Family, family

_LAYER_NORM = {F.LAYER_NORM, F.PLAIN_MLP}
_EPS = {"layer_norm_eps": 1e-3}
_EPSILON = {"layer_norm_epsilon": 1e-3}
_PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}


def _old(*needs: F, **config: Any) -> Family:
    return family(*_LAYER_NORM, *needs, **config)


_FALCON = {"model_type": "falcon", **_EPSILON, "ffn_hidden_size": 160, "bias": True, "activation": "gelu_pytorch_tanh"}

OLDER: dict[str, Family] = {
    "phi": _old(
        F.PARALLEL,
        F.PARTIAL_ROPE,
        F.GELU,
        F.QK_NORM,
        model_type="phi",
        num_key_value_heads=2,
        **_EPS,
        **_PARTIAL,
        qk_layernorm=True,
        hidden_act="gelu",
    ),
    "gpt_neox": _old(
        F.PARALLEL,
        F.GROUPED,
        F.PARTIAL_ROPE,
        F.GELU_TANH,
        model_type="gpt_neox",
        **_EPS,
        **_PARTIAL,
        hidden_act="gelu_new",
        tie_word_embeddings=True,
    ),
    "gpt_neox-sequential": _old(
        F.GROUPED,
        F.PARTIAL_ROPE,
        F.GELU,
        model_type="gpt_neox",
        **_EPS,
        **_PARTIAL,
        use_parallel_residual=False,
        attention_bias=False,
    ),
    "gptj": _old(
        F.PARALLEL,
        F.PARTIAL_ROPE,
        F.ADJACENT_ROPE,
        F.GELU,
        model_type="gptj",
        **_EPSILON,
        rotary_dim=8,
        n_inner=160,
        activation_function="gelu",
    ),
    "gpt2": _old(
        F.STACKED,
        F.TRANSPOSED,
        F.NO_ROPE,
        F.LEARNED_POSITIONS,
        F.RELU,
        model_type="gpt2",
        **_EPSILON,
        n_inner=160,
        activation_function="relu",
        scale_attn_by_inverse_layer_idx=True,
    ),
    "gpt_bigcode": _old(
        F.STACKED,
        F.NO_ROPE,
        F.LEARNED_POSITIONS,
        F.GELU,
        model_type="gpt_bigcode",
        **_EPSILON,
        n_inner=160,
        activation_function="gelu",
        scale_attn_weights=False,
    ),
    "gpt_bigcode-heads": _old(
        F.GROUPED,
        F.NO_ROPE,
        F.LEARNED_POSITIONS,
        F.GELU_TANH,
        model_type="gpt_bigcode",
        **_EPSILON,
        n_inner=160,
        multi_query=False,
    ),
    "opt": _old(
        F.NO_ROPE,
        F.LEARNED_POSITIONS,
        F.GELU,
        model_type="opt",
        ffn_dim=160,
        activation_function="gelu",
        word_embed_proj_dim=96,
    ),
    "opt-plain": _old(
        F.NORM_WITHOUT_WEIGHT,
        F.NO_ROPE,
        F.LEARNED_POSITIONS,
        F.RELU,
        model_type="opt",
        ffn_dim=160,
        layer_norm_elementwise_affine=False,
        enable_bias=False,
        _remove_final_layer_norm=True,
        tie_word_embeddings=False,
    ),
    "falcon": _old(F.PARALLEL, F.STACKED, F.GELU_TANH, **_FALCON, **_ROPE),
    "falcon-new": _old(
        F.PARALLEL, F.GROUPED, F.GELU_TANH, **_FALCON, **_ROPE, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon-one_norm": _old(
        F.PARALLEL,
        F.GROUPED,
        F.GELU,
        **_FALCON | {"activation": "gelu"},
        **_ROPE,
        new_decoder_architecture=True,
        num_kv_heads=3,
        num_ln_in_parallel_attn=1,
    ),
    "falcon-alibi": _old(
        F.GROUPED,
        F.NO_ROPE,
        F.DISTANCE_BIAS,
        F.GELU_TANH,
        **_FALCON,
        alibi=True,
        parallel_attn=False,
        multi_query=False,
        tie_word_embeddings=False,
    ),
    "bloom": _old(
        F.GROUPED,
        F.NO_ROPE,
        F.DISTANCE_BIAS,
        F.EMBEDDING_NORM,
        F.GELU_TANH,
        model_type="bloom",
        **_EPSILON,
        max_position_embeddings=2048,  # where bfloat16 rounds biases to multiples of 4
    ),
    "mpt": _old(
        F.STACKED,
        F.NO_ROPE,
        F.DISTANCE_BIAS,
        F.CLIP,
        F.GELU,
        model_type="mpt",
        **_EPSILON,
        max_seq_len=1024,
        attn_config={"clip_qkv": 0.7, "softmax_scale": 0.3},
    ),
    "cohere": family(
        F.LAYER_NORM,
        F.PARALLEL,
        F.ADJACENT_ROPE,
        F.ROPE_IN_FLOAT32,
        F.QK_NORM_EACH_HEAD,
        F.LOGIT_SCALE,
        model_type="cohere",
        num_key_value_heads=2,
        head_dim=32,
        **_EPS,
        **_ROPE,
        logit_scale=0.3,
        use_qk_norm=True,
        attention_bias=True,
    ),
    "cohere2": family(
        F.LAYER_NORM,
        F.PARALLEL,
        F.ADJACENT_ROPE,
        F.ROPE_IN_FLOAT32,
        F.WINDOW,
        F.NO_ROPE,
        F.LOGIT_SCALE,
        model_type="cohere2",
        num_key_value_heads=2,
        **_EPS,
        **_ROPE,
        logit_scale=0.3,
        attention_bias=True,
        sliding_window=8,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    ),
}

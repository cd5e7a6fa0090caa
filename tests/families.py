"""Decoder families as tiny configurations in which no setting that matters is at its default, and what they need.

Widths are small and uneven, windows and chunks are 8 positions, caps are low enough to bend, multipliers are not one,
layer types are in no regular order. A row's name is transformers' ``model_type``, with a word after a dash where one
family has several rows.
"""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans import Feature
from tests.family import SIZES as _SIZES
from tests.family import Family
from tests.family import family as _family
from tests.mixture_families import MIXTURES
from tests.older_families import OLDER

F = Feature
_GQA = {"num_key_value_heads": 2}
_HEAD = {**_GQA, "head_dim": 32}  # twice the width over the heads
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_RMS = {"rms_norm_eps": 0.03}
_BIAS = {"attention_bias": True}
_LLAMA = {**_HEAD, **_ROPE, **_RMS}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}
_WINDOW, _FULL = "sliding_attention", "full_attention"
_WINDOWS = {"num_hidden_layers": 4, "sliding_window": 8, "layer_types": [_WINDOW, _FULL, _FULL, _WINDOW]}
_BY_TYPE = {"rope_parameters": {_FULL: _YARN, _WINDOW: {"rope_type": "default", "rope_theta": 50.0}}}
_GEMMA = {**_LLAMA, **_BIAS}
_GEMMA_NEEDS = {F.ONE_PLUS_NORM, F.LATE_NORM, F.EMBEDDING_SCALE, F.GELU_TANH}
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_GEMMA2 = {**_GEMMA, **_WINDOWS, **_CAPS, "query_pre_attn_scalar": 20}
_GEMMA3_TEXT = {**_GEMMA2, **_BY_TYPE}
_GEMMA3_NEEDS = {*_GEMMA_NEEDS, F.POST_NORM, F.QK_NORM, F.WINDOW, F.ROPE_BY_LAYER}
_MULTIPLIERS = {
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "embedding_multiplier": 3.3,
    "logits_scaling": 1.7,
}
_MULTIPLIED = {F.RESIDUAL_SCALE, F.EMBEDDING_SCALE, F.LOGIT_SCALE}
_OLMO2_NEEDS = {F.LATE_NORM, F.UNNORMED_INPUT, F.POST_NORM, F.QK_NORM_WIDTH, F.ROPE_IN_FLOAT32}
_PERSIMMON = {**_PARTIAL, "layer_norm_eps": 0.03}
_PERSIMMON_NEEDS = {F.LAYER_NORM, F.QK_NORM, F.GROUPED, F.PARTIAL_ROPE, F.PLAIN_MLP, F.RELU2}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def _wrapper(*needs: Feature, text: dict[str, Any], **config: Any) -> Family:
    """A model that reads images too: its text decoder and a small vision tower."""
    return Family(config={"text_config": _SIZES | text, "vision_config": _VISION} | config, needs=frozenset(needs))


FAMILIES: dict[str, Family] = {
    "llama": _family(model_type="llama", **_LLAMA, **_BIAS, mlp_bias=True),
    "llama-llama3": _family(model_type="llama", **_LLAMA | {"rope_parameters": _LLAMA3}),
    "llama-yarn": _family(model_type="llama", **_LLAMA | {"rope_parameters": _YARN}, tie_word_embeddings=True),
    "llama-dynamic": _family(
        F.LONG_ROPE,
        model_type="llama",
        **_LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "exaone": _family(model_type="exaone", **_LLAMA, **_BIAS),
    "internlm3": _family(model_type="internlm3", **_LLAMA, qkv_bias=True, bias=True),
    "iquestcoder": _family(model_type="iquestcoder", **_LLAMA),
    "seed_oss": _family(model_type="seed_oss", **_LLAMA, attention_out_bias=True, mlp_bias=True),
    "mistral": _family(model_type="mistral", **_LLAMA, sliding_window=None),
    "mistral-window": _family(F.WINDOW, model_type="mistral", **_LLAMA, sliding_window=8),
    "ministral": _family(F.WINDOW, model_type="ministral", **_LLAMA, **_WINDOWS),
    "ministral3": _family(
        F.GROWTH,
        F.WINDOW,
        model_type="ministral3",
        **_LLAMA | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.2}},
        sliding_window=24,
    ),
    "cwm": _family(F.WINDOW, model_type="cwm", **_LLAMA | {"rope_parameters": _LLAMA3}, **_WINDOWS, mlp_bias=True),
    "qwen2": _family(model_type="qwen2", **_LLAMA),
    "qwen2-window": _family(F.WINDOW, model_type="qwen2", **_LLAMA, **_WINDOWS, use_sliding_window=True),
    "qwen3": _family(F.QK_NORM, model_type="qwen3", **_LLAMA, **_BIAS),
    "qwen3-window": _family(F.QK_NORM, F.WINDOW, model_type="qwen3", **_LLAMA, **_WINDOWS, use_sliding_window=True),
    "gemma": _family(*_GEMMA_NEEDS, model_type="gemma", **_GEMMA),
    "gemma2": _family(*_GEMMA_NEEDS, F.POST_NORM, F.WINDOW, F.SCORE_CAP, F.LOGIT_CAP, model_type="gemma2", **_GEMMA2),
    "vaultgemma": _family(*_GEMMA_NEEDS, F.WINDOW, F.SCORE_CAP, F.LOGIT_CAP, model_type="vaultgemma", **_GEMMA2),
    "gemma3_text": _family(*_GEMMA3_NEEDS, F.LOGIT_CAP, model_type="gemma3_text", **_GEMMA3_TEXT),
    "gemma3": _wrapper(
        *_GEMMA3_NEEDS, model_type="gemma3", text={"model_type": "gemma3_text", **_GEMMA3_TEXT}, mm_tokens_per_image=4
    ),
    "mistral3": _wrapper(model_type="mistral3", text={"model_type": "mistral", **_LLAMA, "sliding_window": None}),
    "mistral3-ministral": _wrapper(
        F.GROWTH,
        model_type="mistral3",
        text={
            "model_type": "ministral3",
            **_LLAMA | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.2}},
            "sliding_window": None,
        },
    ),
    "got_ocr2": _wrapper(model_type="got_ocr2", text={"model_type": "qwen2", **_LLAMA}),
    "moss_transcribe_diarize": _wrapper(
        F.QK_NORM,
        model_type="moss_transcribe_diarize",
        text={"model_type": "qwen3", **_LLAMA},
        audio_config={"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
    ),
    "fuyu": _wrapper(
        *_PERSIMMON_NEEDS, model_type="fuyu", text={"model_type": "persimmon", **_PERSIMMON}, patch_size=8
    ),
    "phi4_multimodal": _family(
        F.STACKED,
        F.PARTIAL_ROPE,
        model_type="phi4_multimodal",
        **_GQA,
        **_RMS,
        **_PARTIAL,
        vision_config=_VISION,
        audio_config={"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2}
        | {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
    ),
    "phi3": _family(F.STACKED, F.PARTIAL_ROPE, model_type="phi3", **_GQA, **_RMS, **_PARTIAL),
    "phi3-window": _family(F.STACKED, F.WINDOW, model_type="phi3", **_GQA, **_RMS, **_ROPE, sliding_window=8),
    "phi3-long": _family(
        F.STACKED,
        F.PARTIAL_ROPE,
        F.LONG_ROPE,
        model_type="phi3",
        **_GQA,
        **_RMS,
        original_max_position_embeddings=700,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.3, 1.7, 2.0],
            "long_factor": [1.0, 4.0, 9.0, 16.0],
        },
    ),
    "olmo": _family(
        F.LAYER_NORM,
        F.NORM_WITHOUT_WEIGHT,
        F.CLIP,
        F.ROPE_IN_FLOAT32,
        model_type="olmo",
        **_HEAD,
        **_ROPE,
        **_BIAS,
        clip_qkv=0.7,
    ),
    "olmo2": _family(*_OLMO2_NEEDS, model_type="olmo2", **_LLAMA, **_BIAS),
    "olmo3": _family(*_OLMO2_NEEDS, F.WINDOW, F.ROPE_BY_LAYER, model_type="olmo3", **_LLAMA | _BY_TYPE, **_WINDOWS),
    "granite": _family(*_MULTIPLIED, model_type="granite", **_LLAMA, **_MULTIPLIERS, **_BIAS, mlp_bias=True),
    "granitemoehybrid": _family(
        *_MULTIPLIED,
        F.STACKED,
        F.NO_ROPE,
        model_type="granitemoehybrid",
        **_LLAMA,
        **_MULTIPLIERS,
        **_BIAS,
        num_local_experts=0,
        shared_intermediate_size=128,
        layer_types=[_FULL] * 3,
        mamba_n_heads=6,
    ),
    "granitemoehybrid-rope": _family(
        *_MULTIPLIED,
        F.STACKED,
        model_type="granitemoehybrid",
        **_LLAMA,
        **_MULTIPLIERS,
        num_local_experts=0,
        shared_intermediate_size=128,
        layer_types=[_FULL] * 3,
        mamba_n_heads=6,
        position_embedding_type="rope",
    ),
    "hyperclovax": _family(
        *_MULTIPLIED, F.POST_NORM, model_type="hyperclovax", **_LLAMA, **_MULTIPLIERS, **_BIAS, mlp_bias=True
    ),
    "smollm3": _family(F.NO_ROPE, model_type="smollm3", **_LLAMA, **_BIAS, mlp_bias=True, no_rope_layers=[1, 0, 1]),
    "smollm3-window": _family(
        F.NO_ROPE,
        F.WINDOW,
        model_type="smollm3",
        **_LLAMA,
        **_WINDOWS,
        use_sliding_window=True,
        no_rope_layers=[0, 1, 0, 1],
    ),
    "stablelm": _family(
        F.LAYER_NORM,
        F.PARTIAL_ROPE,
        F.QK_NORM_EACH_HEAD,
        model_type="stablelm",
        **_GQA,
        **_PARTIAL,
        layer_norm_eps=0.03,
        use_qkv_bias=True,
        qk_layernorm=True,
    ),
    "stablelm-parallel": _family(
        F.LAYER_NORM,
        F.PARTIAL_ROPE,
        F.PARALLEL,
        model_type="stablelm",
        **_GQA,
        **_PARTIAL,
        layer_norm_eps=0.03,
        use_parallel_residual=True,
    ),
    "starcoder2": _family(
        F.LAYER_NORM,
        F.PLAIN_MLP,
        F.GELU_TANH,
        F.WINDOW,
        model_type="starcoder2",
        **_HEAD,
        **_ROPE,
        norm_epsilon=0.03,
        sliding_window=8,
    ),
    "glm": _family(F.STACKED, F.PARTIAL_ROPE, F.ADJACENT_ROPE, model_type="glm", **_HEAD, **_RMS, **_PARTIAL),
    "glm4": _family(
        F.STACKED, F.PARTIAL_ROPE, F.ADJACENT_ROPE, F.POST_NORM, model_type="glm4", **_HEAD, **_RMS, **_PARTIAL
    ),
    "exaone4": _family(
        F.UNNORMED_INPUT,
        F.POST_NORM,
        F.QK_NORM,
        model_type="exaone4",
        **_LLAMA,
        sliding_window=None,
        layer_types=[_FULL] * 3,
    ),
    "exaone4-window": _family(
        F.UNNORMED_INPUT,
        F.POST_NORM,
        F.QK_NORM,
        F.WINDOW,
        F.NO_ROPE,
        model_type="exaone4",
        **_LLAMA,
        **_WINDOWS,
    ),
    "ernie4_5": _family(F.ADJACENT_ROPE, F.ROPE_IN_FLOAT32, model_type="ernie4_5", **_LLAMA, use_bias=True),
    "hunyuan_v1_dense": _family(
        F.QK_NORM,
        F.QK_NORM_LATE,
        model_type="hunyuan_v1_dense",
        **_LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0, "alpha": 7.0}},
        **_BIAS,
    ),
    "nemotron": _family(
        F.LAYER_NORM,
        F.ONE_PLUS_NORM,
        F.PARTIAL_ROPE,
        F.PLAIN_MLP,
        F.RELU2,
        model_type="nemotron",
        **_HEAD,
        **_PARTIAL,
        **_BIAS,
        norm_eps=0.03,
        mlp_bias=True,
    ),
    "arcee": _family(F.PLAIN_MLP, F.RELU2, model_type="arcee", **_LLAMA, **_BIAS, mlp_bias=True),
    "jais2": _family(F.LAYER_NORM, F.PLAIN_MLP, F.RELU2, model_type="jais2", **_HEAD, **_ROPE, layer_norm_eps=0.03),
    "helium": _family(
        F.LATE_NORM, F.ADJACENT_ROPE, model_type="helium", **_LLAMA | {"head_dim": 16}, **_BIAS, mlp_bias=True
    ),
    "apertus": _family(F.QK_NORM, F.PLAIN_MLP, F.XIELU, model_type="apertus", **_LLAMA, **_BIAS),
    "apertus1p5_text": _family(
        F.QK_NORM,
        F.PLAIN_MLP,
        F.XIELU,
        model_type="apertus1p5_text",
        **_LLAMA | {"rope_parameters": _LLAMA3},
        output_vocab_size=144,
    ),
    "bitnet": _family(F.INNER_NORM, F.RELU2, model_type="bitnet", **_GQA, **_ROPE, **_RMS, **_BIAS),
    "persimmon": _family(*_PERSIMMON_NEEDS, model_type="persimmon", **_PERSIMMON),
    "nanochat": _family(
        F.NORM_WITHOUT_WEIGHT,
        F.EMBEDDING_NORM,
        F.QK_NORM,
        F.QK_NORM_LATE,
        F.PLAIN_MLP,
        F.RELU2,
        F.LOGIT_CAP,
        model_type="nanochat",
        **_LLAMA,
        **_BIAS,
        final_logit_softcapping=3.0,
    ),
    "cohere_compass_text": _family(
        F.LAYER_NORM,
        F.PARALLEL,
        F.WINDOW,
        F.NO_ROPE,
        F.LOGIT_SCALE,
        model_type="cohere_compass_text",
        **_GQA,
        **_WINDOWS,
        **_BIAS,
        rope_parameters={_WINDOW: {"rope_type": "default", "rope_theta": 50.0}, _FULL: None},
        layer_norm_eps=0.03,
        logit_scale=0.3,
    ),
    "gpt_neo": _family(
        F.LAYER_NORM,
        F.LEARNED_POSITIONS,
        F.NO_ROPE,
        F.WINDOW,
        F.PLAIN_MLP,
        F.GELU_TANH,
        model_type="gpt_neo",
        num_layers=3,
        num_heads=6,
        attention_types=[[["local", "global"], 1], [["local"], 1]],
        window_size=8,
        layer_norm_epsilon=0.03,
    ),
    "biogpt": _family(
        F.LAYER_NORM,
        F.LEARNED_POSITIONS,
        F.EMBEDDING_SCALE,
        F.NO_ROPE,
        F.PLAIN_MLP,
        F.GELU,
        model_type="biogpt",
        layer_norm_eps=0.03,
    ),
    **OLDER,
    **MIXTURES,
}
"""Rows by name."""

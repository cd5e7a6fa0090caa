"""Why a decoder has no plan: by transformers' ``model_type``, as read in transformers 5.24.

`REFUSED` cannot draft for themselves at all: leaving a sub-layer out has no meaning there, or a cache that has drafted
cannot be put back. `UNPLANNED` can, on the reference runner: they compute what no plan describes. `NOT_READ` are
names whose code nobody has read for this project; where attention and MLP can be told apart, they too run there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ATTENDING = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_BESIDE = frozenset({"mlp"})  # some configurations list what follows each attention too
_ANY_WAY = (True, "all")  # of `use_bidirectional_attention`; "vision": pictures alone, texts are causal

_SEE_HYBRIDS = "see “Recurrent hybrids” in the documentation"
_RECURRENT = f"it keeps a recurrent state, which cannot be cut back to an earlier token; {_SEE_HYBRIDS}"
_STATE_ALONE = (
    f"it has a recurrent state and no attention, so nothing can be cut back to an earlier token; {_SEE_HYBRIDS}"
)
_CONVOLUTIONS = f"its short convolutions keep states beside keys and values, which are not yet rewound; {_SEE_HYBRIDS}"
_STREAMS = "it mixes several residual streams (hyper-connections), so a sub-layer that is left out has no meaning yet"
_INDEXER = "an indexer with a cache of its own chooses which keys its attention sees"
_SHARED_KEYS = "its later layers read the keys and values of earlier ones, and every layer adds an input of its own"
_DRAFTER = "it drafts for another model, whose keys and values it reads"
_ENCODER = "it is an encoder's architecture with a head for text"
_PAIRED = "it is the decoder of an encoder–decoder: its layers also attend to the encoder"
_SPEECH = "it makes sound by several tokens a step"

_UNTOLD = "nothing tells its attention and its MLP apart: neither a plan nor the names of its modules"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("bailing_hybrid", "bamba", "falcon_h1", "jamba", "kimi_linear", "lara_mini", "minimax", "nemotron_h"),
            *("olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"),
            *("recurrent_gemma", "zamba", "zamba2", "zaya"),
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), _STATE_ALONE),
    **dict.fromkeys(("inkling_text", "lfm2", "lfm2_moe", "lfm3"), _CONVOLUTIONS),
    **dict.fromkeys(("deepseek_v4", "hy_v4", "inkling2_text", "inkling2_loop_text", "qwen4_exp"), _STREAMS),
    "qwen4_exp_text": _STREAMS,
    **dict.fromkeys(("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa"), _INDEXER),
    "minimax_m3_vl_text": _INDEXER,
    **dict.fromkeys(("gemma3n", "gemma3n_text"), _SHARED_KEYS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTER),
    **dict.fromkeys(("cpmant", "ctrl", "xglm"), _UNTOLD),
    "blt": "it reads bytes in patches, by several transformers in turn",
    "dbrx": "its attention is in one module with the norm of its experts, and is added to the stream there",
    "doge": "which keys its attention sees depends on how many tokens a pass is over",
    "dory": "its stream moves on a sphere (nGPT), so a sub-layer that adds nothing still changes it",
    "emu3": "transformers has no causal language model that reads its checkpoints",
    "hrm_text": "it runs two stacks of layers in cycles, so a layer runs several times a token",
    "jetmoe": "its attention is itself a mixture of experts",
    "longcat_flash": "its layers have two attentions and two MLPs, and experts that bridge them",
    "openai-gpt": "it keeps no keys and values, and reads the whole text again for every token",
    "reformer": "its two streams are reversible, and its cache is of hash buckets",
    "xlm": _ENCODER,
    "xlnet": "it predicts tokens in an order of its own, by two streams",
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "git"),
            *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl", "xmod"),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
            *("plbart", "prophetnet", "trocr", "whisper"),
        ),
        _PAIRED,
    ),
    **dict.fromkeys(("moshi", "musicgen", "musicgen_melody"), _SPEECH),
}
"""What cannot draft for itself, completing "… cannot draft for itself: "."""

_LATENT = "its keys and values come from a latent vector (multi-head latent attention), which no plan describes"
_SHAPES = "its layers have heads of several sizes"
_OF_PICTURES = "its layers that attend to an image take part in the count of layers, but not in text"

UNPLANNED: dict[str, str] = {
    **dict.fromkeys(
        ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "sarvam_mla", "youtu"), _LATENT
    ),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _SHAPES),
    **dict.fromkeys(("mllama", "mllama_text_model"), _OF_PICTURES),
    "beam": "its stream is scaled anew at every addition",
    "gpt_neox_japanese": "the bias of its last attention is added outside of it",
    "codegen": "its queries, values and keys are stacked in four blocks, in this order",
    "diffllama": "its attention is the difference of two softmaxes",
    "laguna": "its layers have different numbers of heads, whose outputs are multiplied with a softplus",
    "mimo_v2_flash": "its values have another size than its keys",
    "modernbert-decoder": "its head has a layer of its own before the logits",
    "phimoe": "its router weighs its two experts one after the other, by masked softmaxes (sparsemixer)",
}
"""Why no plan of what runs on the reference runner can be made."""

_SETTINGS = {
    "num_kv_shared_layers": "its later layers read the keys and values of earlier ones",
    "hidden_size_per_layer_input": "every layer adds an input of its own, a third thing beside its attention and MLP",
    "enable_moe_block": "its layers have an MLP and experts side by side, with norms of their own",
}

NOT_READ: frozenset[str] = frozenset()
"""Causal language models of transformers that nobody has read for a plan yet."""


def refused_reason(config: Mapping[str, Any]) -> str | None:
    """Why a model with this configuration cannot draft for itself at all; None: nothing says so."""
    reasons = [_reason(part) for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    return next((reason for reason in reasons if reason is not None), None)


def _reason(config: Mapping[str, Any]) -> str | None:
    if config.get("model_type") in REFUSED:
        return REFUSED[str(config["model_type"])]
    if config.get("is_encoder_decoder"):
        return "it is an encoder–decoder"
    others = sorted(set(config.get("layer_types") or ()) - _ATTENDING - _BESIDE)
    if others:
        return f"it is a hybrid with {', '.join(others)} layers, which cannot be rewound; {_SEE_HYBRIDS}"
    if config.get("is_causal") is False or config.get("use_bidirectional_attention") in _ANY_WAY:
        return "its attention sees later positions too"
    return next((reason for setting, reason in _SETTINGS.items() if config.get(setting)), None)

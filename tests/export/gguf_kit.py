"""GGUF files of tiny random checkpoints, as llama.cpp's converter names and orders their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def save_gguf(directory: Path, target: Path, also: Callable[[GGUFWriter], None] = lambda writer: None) -> Path:
    """``target``, a float32 GGUF file of the llama or qwen2 checkpoint in ``directory``; its vocabulary is made up.

    ``also`` adds to what the writer holds, before it is written.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    config = model.config
    writer = GGUFWriter(target, config.model_type)
    heads, heads_kv = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_file_type(0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(size)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, config.vocab_size)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = parameter.float().numpy()
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            if config.model_type == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
                rows = interleaved(rows, heads if rest.endswith("q_proj") else heads_kv)
            new = f"blk.{layer}.{_NAMES[rest]}.{kind}"
        else:
            new = f"{_OUTSIDE[stem]}.{kind}"
        writer.add_tensor(new, np.ascontiguousarray(rows))
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The two halves of every head's rows in turn, as llama.cpp's llama rotates them."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    # Whole characters: the server names no tokens that are parts of one.
    letters = [chr(code) for code in range(33, 127)]
    pairs = [first + second for first in "abcdefgh" for second in "abcdefgh"]
    tokens = ["<unk>", "<s>", "</s>", *letters, *pairs][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges([f"{first} {second}" for first, second in (token for token in tokens if token in pairs)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

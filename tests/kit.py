"""Builders of tiny, random, real checkpoints: each is made in milliseconds and runs in microseconds.

Everything that needs torch is imported inside the functions, so that tests of
torch-free modules may use the kit too.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

HIDDEN = 64
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
# Frequent letters first: a vocabulary too small for all of them keeps the most useful.
_ALPHABET = " etaoinshrdlcumwfgypbvk" + "".join(
    sorted(set(string.printable[:95] + "\n\t") - set(" etaoinshrdlcumwfgypbvk"))
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _tiny(
    model_type: str,
    directory: Path,
    *,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 128,
    tied: bool = False,
    seed: int = 0,
    context: int = 1024,
    chat: bool = False,
    **settings: Any,
) -> Path:
    """A checkpoint (hidden 64); ``kv_heads=heads`` gives each head keys of its own, as in Llama 2."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        model_type,
        **_common(layers, vocab, context),
        intermediate_size=2 * HIDDEN,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        **settings,
    )
    return save_random(config, directory, seed=seed, chat=chat)


tiny_llama = partial(_tiny, "llama")
tiny_qwen2 = partial(_tiny, "qwen2")  # which has biases on queries, keys and values


def tiny_of_type(directory: Path, model_type: str, *, layers: int = 2, vocab: int = 128, seed: int = 0) -> Path:
    """A checkpoint of any of the other architectures in ``OTHER_CONFIGS``. Returns ``directory``."""
    return save_random(tiny_config(model_type, layers=layers, vocab=vocab), directory, seed=seed)


def tiny_config(model_type: str, *, layers: int = 2, vocab: int = 128) -> PreTrainedConfig:
    """The configuration behind ``tiny_of_type``."""
    from transformers import AutoConfig

    settings = _common(layers, vocab, 256) | OTHER_CONFIGS[model_type]
    if model_type in _SEEING:
        return AutoConfig.for_model(model_type, text_config=settings, vision_config=_SEEING[model_type])
    return AutoConfig.for_model(model_type, **settings)


_HEADS = {"num_attention_heads": 4}
_GQA = {**_HEADS, "num_key_value_heads": 2, "intermediate_size": 2 * HIDDEN}
# What tells these architectures apart from the common settings; keys are transformers' model types.
OTHER_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_head": 4},
    "gpt_neox": {**_HEADS, "intermediate_size": 2 * HIDDEN},
    "gemma2": {**_GQA, "head_dim": 16},
    "mixtral": {**_GQA, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {
        **_GQA,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": HIDDEN,
        "shared_expert_intermediate_size": HIDDEN,
    },
    "bloom": {"n_head": 4},
    "opt": {**_HEADS, "ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN},
    "mamba": {"state_size": 4},
    "codegen": {"n_head": 4, "rotary_dim": 8},  # which has no plan
    "gemma3": {**_GQA, "head_dim": 16},
    "llama4_text": {**_GQA, "head_dim": 16, "intermediate_size_mlp": HIDDEN, "num_local_experts": 2},
}
# Wrappers that also see pictures, and what they see with.
_SEEING: dict[str, dict[str, Any]] = {
    "gemma3": {**_HEADS, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "image_size": 28},
}


def pack_ternary(directory: Path) -> Path:
    """Quantise a Llama checkpoint in place as BitNet does: ternary weights, four to a byte."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.bitnet import pack_weights

    file, settings = directory / "model.safetensors", directory / "config.json"
    weights = load_file(file)
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        weights[f"{name}_scale"] = weights[name].abs().mean()[None]
        weights[name] = pack_weights((weights[name] / weights[f"{name}_scale"]).round().clamp(-1, 1))
    save_file(weights, file, metadata={"format": "pt"})
    bitnet = {"quantization_config": {"quant_method": "bitnet"}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | bitnet))
    return directory


def save_random(config: PreTrainedConfig, directory: Path, *, seed: int = 0, chat: bool = False) -> Path:
    """Save a model of this configuration with random weights, and a tokenizer of its vocabulary size."""
    random_model(config, seed).save_pretrained(directory)
    vocab: Any = config.get_text_config()
    tiny_tokenizer(vocab.vocab_size, chat=chat).save_pretrained(directory)
    return directory


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose greedy text varies and whose layers all matter: the defaults would repeat one token."""
    import torch

    from selfspec_tune.models.auto import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                gain = 0.5 if embedding else 1.5 / math.sqrt(parameter.shape[-1])
                parameter.copy_(gain * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.add_(0.1 * noise)
        for name in _persistent_buffers(model):
            buffer = model.get_buffer(name)
            if buffer.is_floating_point():
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator).to(buffer.dtype))
    model.generation_config.eos_token_id = EOS
    model.eval()
    return model


def _persistent_buffers(model: PreTrainedModel) -> list[str]:
    """Names of what a checkpoint holds beside parameters."""
    stored = model.state_dict().keys()
    return sorted(name for name, _ in model.named_buffers() if name in stored)


def tiny_tokenizer(vocab: int = 128, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """A character tokenizer with a few merges, of at most ``vocab`` tokens; ids 0–2 are special."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pairs = [(a, b) for a in "theanisou" for b in "rndtesil "]
    letters = _ALPHABET[: max(0, vocab - len(SPECIAL_TOKENS))]
    merges = [(a, b) for a, b in pairs if a in letters and b in letters]
    merges = merges[: max(0, vocab - len(SPECIAL_TOKENS) - len(letters))]
    tokens = [*SPECIAL_TOKENS, *letters, *(a + b for a, b in merges)]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Fuse()
    unk, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def tiny_gguf(
    checkpoint: Path, path: Path, also: Callable[[Any], None] = lambda writer: None, *, architecture: str = "llama"
) -> Path:
    """Write a ``tiny_llama`` checkpoint as an unquantised GGUF file; returns ``path``.

    ``also`` adds to what the writer holds, before it is written.
    """
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_gguf_tokenizer(writer, AutoTokenizer.from_pretrained(checkpoint))
    names: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        values = _interleaved(weight.numpy(), heads.get(name.split(".")[-2], 0))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: Any, heads: int) -> Any:
    """GGUF's order of the rotary dimensions of ``heads`` heads (none: unchanged)."""
    if not heads:
        return weight
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns).copy()


def _add_gguf_tokenizer(writer: Any, tokenizer: Any) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    byte_level = str.maketrans(" \t\n", "ĠĉĊ")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token.translate(byte_level) for token in model["vocab"]])
    writer.add_token_merges([" ".join(part.translate(byte_level) for part in pair) for pair in model["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)


def plant_in_hub_cache(cache_dir: Path, hub_id: str, checkpoint_dir: Path, *, seed: str = "") -> Path:
    """Lay a checkpoint out as if it had been downloaded from the hub; returns its snapshot directory.

    ``cache_dir`` is the hub cache itself: ``$HF_HUB_CACHE``, or ``$HF_HOME/hub``. Another ``seed`` is another commit,
    which the branch ``main`` then leads to.
    """
    revision = hashlib.sha1((hub_id + seed).encode()).hexdigest()
    repository = cache_dir / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    shutil.copytree(checkpoint_dir, snapshot)
    reference = repository / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(revision)
    return snapshot


def _common(layers: int, vocab: int, context: int) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    }

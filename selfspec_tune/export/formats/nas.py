"""Drafts whose layers may lack their attention or their MLP, as ``nemotron-nas`` directories.

transformers runs them by the small files that come with them; vLLM, SGLang, TensorRT-LLM and MLX-LM have models of that
kind of their own, which the configuration's entries are for.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.export.blocks import LayerBlock
from selfspec_tune.export.checkpoint import FILES, write_checkpoint
from selfspec_tune.export.format import Written, not_ours
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.export.restated import difference
from selfspec_tune.files import read_settings, read_text, write_atomic
from selfspec_tune.plans import DecoderPlan, features, plan_of

if TYPE_CHECKING:
    from torch import Tensor

_FILES = Path(__file__).parent / "nas_files"
_VLLM_NAMES = ("eagle-", "eagle3", "dflash", "dspark")
_TRTLLM = "trtllm.yaml"
_CODE = ("configuration_decilm.py", "modeling_decilm.py")
_AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}
_MULTIPLE = 256  # runtimes round the width of an FFN up to it


class Nas(AssistedFormat):
    """Layers without attention or MLP, with the code that transformers runs them by."""

    name = "nas"
    about = "layers without attention or MLP: vLLM, SGLang, MLX-LM, transformers"
    files = FILES | {*_CODE, _TRTLLM}
    has_own_code = True

    def write(self, job: Job[CheckpointTarget], folder: Path, final: Path) -> Written:
        """A Llama with layers as `surviving_blocks` leaves them.

        Raises `UnsupportedModelError` for a model that a Llama with biases is not.
        """
        _check_is_llama(job)
        blocks = job.blocks
        if blocks[0].attention is None:
            # vLLM takes the first layer's cache for granted: it gets an attention that adds nothing.
            blocks = [LayerBlock(0, blocks[0].mlp), *blocks[1:]]
        config = _config(job, blocks)
        size = write_checkpoint(folder, _tensors(job, blocks), config)
        for name, code in _model_code().items():
            write_atomic(folder / name, code)
        if not _has_biases(job):
            write_atomic(folder / _TRTLLM, _trtllm_options(job, final))
        copy_beside(job, folder)
        launch = assisted_launch(job, final, remote_code=True) | _launch(job, blocks, final)
        return Written(size, launch, _notes(job, blocks, final), {"exit_threshold": job.exit_threshold})

    def code(self, folder: Path) -> Mapping[str, str]:
        if read_settings(folder / "config.json").get("auto_map") != _AUTO_MAP:
            raise not_ours(folder / "config.json")
        return _model_code()


FORMAT = Nas()


def _model_code() -> dict[str, str]:
    """The files that come with a draft, by name."""
    return {name: read_text(_FILES / name) for name in _CODE}


def _check_is_llama(job: Job[CheckpointTarget]) -> None:
    """Raises `UnsupportedModelError` unless the target computes what a Llama with biases does."""
    layout = job.target.layout
    reason = layout.unplanned if layout.plan is None else _unlike_llama(layout.plan, layout.config)
    if any(re.search(r"\.(o_proj|gate_proj|up_proj|down_proj)\.bias$", name) for name in layout.names.parts):
        reason = reason or "it has biases in its output projections or its MLPs"
    if reason:
        raise UnsupportedModelError(
            f"{job.target.model}, of the type {layout.config.get('model_type')}, cannot be written as a Llama without "
            f"some sub-layers: {reason}. Expected what computes as llama or qwen2 do. Use `to` hf-draft for whole "
            "layers, or `to` hf-zero or `to` transformers-generate."
        )


def _unlike_llama(plan: DecoderPlan, config: Mapping[str, Any]) -> str:
    """How the target differs from the Llama of the same configuration, biases apart; empty where in nothing."""
    if more := sorted(features(plan)):
        return f"it has {', '.join(more[:3])}"
    if plan.beside:
        return f"it is more than a decoder ({', '.join(plan.beside)})"
    try:
        llama = plan_of({**config, "model_type": "llama"})
    except UnsupportedModelError as error:
        return str(error)
    found = difference(llama, replace(plan, model_type="llama"))
    return f"a Llama's {found} is another" if found else ""


def _tensors(job: Job[CheckpointTarget], blocks: list[LayerBlock]) -> Iterator[tuple[str, Tensor]]:
    import torch

    is_tied = job.target.layout.config.get("tie_word_embeddings")
    is_first_empty = job.blocks[0].attention is None
    for new, old in job.target.layout.renamed(blocks, as_modules=True):
        if is_tied and new == "lm_head.weight":
            continue
        tensor = job.target.checkpoint.read(old)
        adds_nothing = is_first_empty and new == "model.layers.0.self_attn.o_proj.weight"
        yield new, torch.zeros_like(tensor) if adds_nothing else _padded(new, tensor)


def _padded(name: str, tensor: Tensor) -> Tensor:
    """The tensor as one of an MLP of the width that the runtimes expect; what is added computes nothing."""
    from torch.nn import functional

    if name.endswith((".gate_proj.weight", ".up_proj.weight")):
        return functional.pad(tensor, (0, 0, 0, padded(len(tensor)) - len(tensor)))
    if name.endswith(".down_proj.weight"):
        return functional.pad(tensor, (0, padded(tensor.shape[1]) - tensor.shape[1]))
    return tensor


def _config(job: Job[CheckpointTarget], blocks: list[LayerBlock]) -> dict[str, Any]:
    full, given = job.target.layout.config, job.target.checkpoint.config
    heads, width, inner = full["num_attention_heads"], full["hidden_size"], padded(full["intermediate_size"])
    rope = full["rope_parameters"]
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    names: tuple[str, ...] = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")
    names += ("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    dtype = given.get("dtype") or given.get("torch_dtype") or "float32"
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": _AUTO_MAP,
        **{name: full.get(name) for name in names},
        "intermediate_size": inner,
        "head_dim": full.get("head_dim") or width // heads,
        "num_hidden_layers": len(blocks),
        "attention_bias": False,
        "qkv_bias": _has_biases(job),
        "mlp_bias": False,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else scaling,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        "block_configs": [_block_config(block, heads // full["num_key_value_heads"], inner, width) for block in blocks],
    }


def _block_config(block: LayerBlock, group: int, inner: int, width: int) -> dict[str, Any]:
    has_attention, has_mlp = block.attention is not None, block.mlp is not None
    return {
        "attention": {
            "no_op": not has_attention,
            "replace_with_linear": False,
            "sparsify": None,
            "n_heads_in_group": group if has_attention else None,
            "window_length": None,
            "num_sink_tokens": None,
            "use_prefill_window_in_sink_attention": False,
            "unshifted_sink": False,
        },
        "ffn": {
            "no_op": not has_mlp,
            "replace_with_linear": False,
            "sparsify": None,
            "ffn_mult": ffn_mult(inner, width) if has_mlp else None,
        },
    }


def padded(inner: int) -> int:
    """The width of an MLP of ``inner`` as the runtimes have it: they round up."""
    return -(-inner // _MULTIPLE) * _MULTIPLE


def ffn_mult(inner: int, width: int) -> float:
    """The multiplier from which runtimes compute an FFN of ``inner``: 2/3 of it times ``width``, rounded up.

    It aims below ``inner``, a multiple of what they round to, so that no error of the division leads past it.
    """
    return (inner - _MULTIPLE // 4) * 1.5 / width


def _launch(job: Job[CheckpointTarget], blocks: list[LayerBlock], final: Path) -> dict[str, str]:
    target, draft = shlex.quote(job.target.in_lines), shlex.quote(str(final))
    speculative = {"method": "draft_model", "model": str(final), "num_speculative_tokens": job.draft_tokens}
    lines = {
        "vllm": f"vllm serve {target} --trust-remote-code {job.sampling.vllm} "
        f"--speculative-config {shlex.quote(json.dumps(speculative))}",
        "sglang": f"python -m sglang.launch_server --model-path {target} --trust-remote-code "
        f"--speculative-algorithm STANDALONE --speculative-draft-model-path {draft} "
        f"--speculative-num-steps {job.draft_tokens} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {job.draft_tokens + 1} {job.sampling.sglang}",
    }
    if not _has_biases(job):
        lines["tensorrt-llm"] = (
            f"trtllm-serve {target} --trust_remote_code --config {shlex.quote(str(final / _TRTLLM))}"
        )
    if not _mlx_trouble(job, blocks):
        lines["mlx"] = (
            f"mlx_lm.server --model {target} --draft-model {draft} --num-draft-tokens {job.draft_tokens} "
            f"--trust-remote-code {job.sampling.mlx}"
        )
    return lines


def _trtllm_options(job: Job[CheckpointTarget], final: Path) -> str:
    """What trtllm-serve reads in place of options; JSON strings are YAML."""
    return (
        "disable_overlap_scheduler: true\n"
        "speculative_config:\n"
        "  decoding_type: Draft_Target\n"
        f"  max_draft_len: {job.draft_tokens}\n"
        f"  speculative_model: {json.dumps(str(final), ensure_ascii=False)}\n"
    )


def _notes(job: Job[CheckpointTarget], blocks: list[LayerBlock], final: Path) -> tuple[str, ...]:
    trouble = _mlx_trouble(job, blocks)
    notes = [f"Not for MLX-LM: {trouble}."] if trouble else []
    if _has_biases(job):
        notes.append("Not for TensorRT-LLM: its nemotron-nas has no biases.")
    notes.append(f"SGLang and TensorRT-LLM sample at temperature 1 unless a request states its own: {_asked(job)}.")
    penalty = job.sampling.in_force.get("repetition_penalty")
    if penalty is not None and not trouble:
        notes.append(f"MLX-LM penalises repetition only where a request says so: send repetition_penalty {penalty:g}.")
    if job.exit_threshold:
        notes.append(
            f"It was searched to stop drafting below {job.exit_threshold:.0%}; of these runtimes only transformers "
            "does, the others draft on and gain less."
        )
    if any(part in str(final) for part in _VLLM_NAMES):
        notes.append(f"vLLM takes a path with one of {', '.join(_VLLM_NAMES)} for another method: move the folder.")
    return tuple(notes)


def _asked(job: Job[CheckpointTarget]) -> str:
    """What requests should state to be decoded as it was measured; -1 is their way to draw from all tokens."""
    values = job.sampling.of_request
    if values.get("top_k") == 0:
        values["top_k"] = -1
    stated = [f"{name} {value:g}" for name, value in values.items()]
    *first, last = stated
    return f"send {', '.join(first)} and {last}" if first else f"send {last}"


def _has_biases(job: Job[CheckpointTarget]) -> bool:
    """On queries, keys and values."""
    return any(name.endswith(".q_proj.bias") for name in job.target.layout.names.parts)


def _mlx_trouble(job: Job[CheckpointTarget], blocks: list[LayerBlock]) -> str:
    """What keeps MLX-LM from drafting with it; empty where nothing does."""
    config = job.target.layout.config
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if any(block.attention is None for block in blocks):
        return "it takes no rejected token back from a draft in which a layer has no attention"
    if _has_biases(job):
        return "its nemotron-nas has no biases on queries, keys and values alone"
    if (config.get("head_dim") or width // heads) * heads != width:
        return "its nemotron-nas computes the size of a head from the width"
    return ""

"""Loads a GGUF file as an ordinary, dequantised transformers model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError
from selfspec_tune.models.gguf_header import read_quickly, rope_scaling, value_of
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.models.model_files import check_depth, open_gguf, package
from selfspec_tune.models.weights import check_all_read, check_stated_size, refuse_unread

if TYPE_CHECKING:
    from gguf import GGUFReader

# Factors of the rotation, which are read apart or made anew; a head that is tied; towers and heads for other uses.
_NOT_NEEDED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|output\.weight|(v|a|mm|cls)\..*")
_LOOKED_UP = ("bos", "eos", "unknown", "padding")  # the tokens whose texts transformers asks for


def check_gguf_read(name: str, model: PreTrainedModel, architecture: str, stored: Iterable[str]) -> None:
    """Raise `FileFormatError` where transformers has no place for a tensor, of the names that a file ``stored``.

    Where its newer reader knows the ``architecture``, it reports such tensors as it does of other checkpoints.
    """
    if is_gguf_arch_supported(architecture):
        return
    processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    places = get_gguf_hf_weights_map(model, processor(config={}))
    unread = [key for key in stored if not _NOT_NEEDED.fullmatch(key) and not _has_place(key, places)]
    refuse_unread(name, model, unread)


def _has_place(key: str, places: dict[str, str]) -> bool:
    return key in places or key.removesuffix(".weight") in places  # experts, which are one parameter, without a suffix


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Model, tokenizer and one line of provenance.

    Raises:
        FileFormatError: the file is no GGUF file of a language model, is truncated, or lacks weights or holds more
            than the model has.
        UnsupportedModelError: transformers cannot read this architecture or these tensors from GGUF, or would compute
            another model of them than llama.cpp does.
    """
    reader = open_gguf(path)
    _check_stated(reader, path)
    try:
        with quietly(), _alone(path) as (folder, source):
            config = AutoConfig.from_pretrained(folder, **source)
            _drop_padding_beyond(config)
            check_stated_size(path, config, path.stat().st_size)
            scaling = rope_scaling(reader, config)
            if scaling:
                config.rope_parameters |= scaling
            read: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, **_dequantised(), **source
            )
        tokenizer = load_gguf_tokenizer(path)
    except SelfSpecError:
        raise
    except Exception as error:  # of an architecture that it does not know, transformers raises many kinds
        raise UnsupportedModelError(
            f"The GGUF file {path} cannot be turned into a transformers model. {_reason(error)} "
            "Give the original checkpoint's directory or hub id instead."
        ) from error
    loaded, report = read
    if missing := sorted(report["missing_keys"]):
        raise FileFormatError(
            f"The GGUF file {path} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}), as "
            "transformers names them. Give the original checkpoint's directory or hub id instead."
        )
    check_all_read(str(path), loaded, report["unexpected_keys"])
    with read_quickly():
        stored = (tensor.name for tensor in reader.tensors)
        check_gguf_read(str(path), loaded, str(value_of(reader, "general.architecture")), stored)
    rotation = f", rotary scaling {scaling['rope_type']} {scaling['factor']:g}" if scaling else ""
    return _as_plain(loaded), tokenizer, f"gguf, dequantised, {_file_type(reader)}{rotation}"


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file. Raises whatever transformers raises."""
    with quietly(), _alone(path) as (folder, source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **source)
    tokenizer.name_or_path = str(path)
    return tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with nothing but the file, and how transformers is to read it.

    Of files beside it transformers would take a tokenizer.json, whosever it is, for the file's own.
    """
    with read_quickly(), TemporaryDirectory(prefix="selfspec-gguf-") as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(path.absolute())
        yield Path(folder), {"gguf_file": link.name, "local_files_only": True}


def _check_stated(reader: GGUFReader, path: Path) -> None:
    """Raise `FileFormatError` where transformers takes a default of its own, or trips over what the file states."""
    own = value_of(reader, "general.architecture")
    depth = value_of(reader, f"{own}.block_count")
    epsilons = [value_of(reader, f"{own}.attention.layer_norm_{kind}") for kind in ("epsilon", "rms_epsilon")]
    if depth is None or epsilons == [None, None]:
        key = "block_count" if depth is None else "attention.layer_norm_rms_epsilon"
        raise FileFormatError(f"{path} lacks the key {own}.{key}. Get the file again.")
    check_depth(path, depth)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    for key in (f"tokenizer.ggml.{role}_token_id" for role in _LOOKED_UP):
        token = value_of(reader, key, 0)
        if tokens is not None and not (isinstance(token, int) and 0 <= token < len(tokens.data)):
            raise FileFormatError(
                f"{path} states token {token} as its {key}, and holds {len(tokens.data)} tokens. Get the file again, "
                f"or state another: gguf-set-metadata {path} {key} TOKEN (of the gguf package)."
            )


def _file_type(reader: GGUFReader) -> str:
    """The quantisation that a GGUF file states, such as "Q4_1". It is a label only: the tensors state their own."""
    from gguf import LlamaFileType

    stated = value_of(reader, "general.file_type")
    if stated is None:
        return "unknown type"
    try:
        return LlamaFileType(stated).name.removeprefix("MOSTLY_")
    except ValueError:
        return f"type {stated}"


def _drop_padding_beyond(config: Any) -> None:
    """Forget a padding token outside the vocabulary, as an architecture's default may be; decoding needs none."""
    part = config.get_text_config()
    if (getattr(part, "pad_token_id", None) or 0) >= part.vocab_size:
        part.pad_token_id = None


def _reason(error: Exception) -> str:
    """Why transformers cannot make a model of a file, in a sentence."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, NotImplementedError) and "Dequantization" in text:
        return f"{text} in {package()}. Update it (pip install --upgrade gguf), or quantise to a type such as Q8_0."
    if unknown := re.search(r"GGUF model with architecture (\S+) is not supported", text):
        return f"transformers {transformers.__version__} reads no GGUF files of architecture {unknown[1]!r}."
    if "ignore_mismatched_sizes" in text:
        return "Its tensors have other shapes than its keys state."
    return f"It may be damaged, or made for another release than {transformers.__version__}, which says: “{text}”."


def _dequantised() -> dict[str, Any]:
    """Asks transformers to unpack the weights; releases that cannot keep them packed need no asking."""
    settings = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": settings(dequantize=True)} if settings else {}


def _as_plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not count as quantised, so that it can be saved and moved."""
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    with torch.device("meta"):  # no second copy of the weights
        plain = type(loaded)(type(loaded.config)(**config))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    for name, buffer in loaded.named_buffers(remove_duplicate=False):  # rotary: in no state dict
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, buffer)
    return plain

"""Tensors of a GGUF file that transformers passes over: it drops them before it reports any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from selfspec_tune.models.unread import refuse_unread

# Factors of the rotation, which are read apart or made anew; a head that is tied; towers and heads for other uses.
_NOT_NEEDED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|output\.weight|(v|a|mm|cls)\..*")


def check_gguf_read(name: str, model: PreTrainedModel, architecture: str, stored: Iterable[str]) -> None:
    """Raise `UnsupportedModelError` where transformers has no place for a tensor, of the names that a file ``stored``.

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

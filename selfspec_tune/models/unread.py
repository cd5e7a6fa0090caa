"""Tensors of a checkpoint that its architecture has no place for: without them another model would be measured."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedModel

from selfspec_tune.errors import UnsupportedModelError

# Tables that are made anew, of the architecture's own numbers.
_MADE_ANEW = re.compile(r"(inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias|position_ids)$")
_SCALES = ("scale", "scales", "scale_inv", "qzeros", "absmax", "scale_2", "zero_point")
_SHOWN = 3


def check_all_read(name: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raise `UnsupportedModelError` where ``unread`` tensors belong to the decoder that was loaded.

    Towers of images or sound, and heads for other uses, are no part of it.
    """
    modules = {path for path, _ in model.named_modules()}
    prefix = f"{model.base_model_prefix}."
    lost = (key for key in unread if not _MADE_ANEW.search(key) and _is_of_decoder(key, prefix, modules))
    refuse_unread(name, model, lost)


def refuse_unread(name: str, model: PreTrainedModel, unread: Iterable[str]) -> None:
    """Raise `UnsupportedModelError` by name where ``unread``, tensors that matter, are any."""
    lost = sorted(unread)
    if not lost:
        return
    some = ", ".join(lost[:_SHOWN]) + (", …" if len(lost) > _SHOWN else "")
    cause = (
        "It is quantised in a way that its config.json does not state"
        if any(key.rsplit(".", 1)[-1].endswith(_SCALES) for key in lost)
        else "Its configuration is of another architecture, of fewer layers, or an adapter was never merged"
    )
    raise UnsupportedModelError(
        f"{name!r} holds {len(lost)} tensors that its {type(model).__name__} has no place for ({some}), so another "
        f"model would be measured. {cause}. Give the checkpoint that it was made from."
    )


def _is_of_decoder(key: str, prefix: str, modules: set[str]) -> bool:
    """Whether a tensor lies in the stack of layers, or beside a tensor that was read."""
    if key == "lm_head.weight":  # stored although it is tied
        return False
    owner = key.rpartition(".")[0]
    candidates = {owner, f"{prefix}{owner}", owner.removeprefix(prefix)} - {""}
    in_layers = any(re.match(rf"({re.escape(prefix)})?(layers|h|blocks)\.\d+\.", each + ".") for each in candidates)
    return in_layers or not candidates.isdisjoint(modules)

"""Where a text of a model ends: at the length of its context, or at a token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.model_files import CONTEXT_KEYS


def context_length(model: PreTrainedModel) -> int:
    """Most positions: as its configuration states, or up to where its rotary positions change, as all keys then would.

    Raises `UnsupportedModelError` where it states none.
    """
    config: Any = model.config.get_text_config()
    for key in CONTEXT_KEYS:
        length = getattr(config, key, None)
        if isinstance(length, int) and length > 0:
            return min(length, rope_limit(config) or length)
    raise UnsupportedModelError(
        f"{type(model).__name__} states no context length: "
        f"expected one of {', '.join(CONTEXT_KEYS)} in its config.json. Add it there."
    )


def rope_limit(config: Any) -> int | None:
    """Positions that rotary positions of the kind ``longrope`` have their first table for; None: of no such kind."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [part.get("original_max_position_embeddings") for part in parts if part.get("rope_type") == "longrope"]
    return min((limit for limit in limits if limit), default=None)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The first of generation config, config and tokenizer that names any: where ``generate`` stops."""
    generation: Any = model.generation_config
    config: Any = model.config.get_text_config()
    for owner in (generation, config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if isinstance(ids, int):
            return (ids,)
        if isinstance(ids, Iterable):
            return tuple(sorted(set(ids)))
    return ()

"""A row of `tests.families`: a tiny configuration, and what its plan needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfspec_tune.plans import Feature
from tests.kit import BOS, EOS


@dataclass(frozen=True, slots=True)
class Family:
    """``config``: keywords of `AutoConfig.for_model`; ``needs``: the features of its plan."""

    config: dict[str, Any]
    needs: frozenset[Feature] = frozenset()


SIZES = {
    "vocab_size": 160,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 1024,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}


def family(*needs: Feature, **config: Any) -> Family:
    """A row with `SIZES`, unless ``config`` says otherwise."""
    return Family(config=SIZES | config, needs=frozenset(needs))

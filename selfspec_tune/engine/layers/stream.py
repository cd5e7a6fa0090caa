"""What passes from sub-layer to sub-layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Stream(NamedTuple):
    """The residual stream, and what an MLP beside its attention reads instead of it.

    ``hidden`` [tokens, width]; ``layer_input`` [tokens, width]: the input of layer number ``layer``, whose attention
    ran last. None where no MLP needs it.
    """

    hidden: Tensor
    layer_input: Tensor | None = None
    layer: int = -1

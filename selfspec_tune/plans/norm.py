"""Norms as plain values: which kind, where their weights are, and where they round."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NormKind(StrEnum):
    """What is divided by: the root of the mean square, or the deviation from a mean that is taken off first."""

    RMS = "RMSNorm"
    LAYER = "LayerNorm"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormPlan:
    """One norm over the last dimension, always computed in float32.

    Attributes:
        path: its module, relative to the layer, or to the model where it belongs to no layer; a bias is used where
            the module has one.
        epsilon: added to the mean square, or to the variance.
        has_weight: whether there is a weight to multiply with.
        one_plus: whether the weight is stored minus one.
        is_late: whether the weight is applied in float32, before the only rounding to the model's type. Otherwise
            the normalised value is rounded, and its product with the weight again, as Llama does. A `LAYER` norm of
            torch rounds once, at its end: it is late.
    """

    path: str
    epsilon: float
    kind: NormKind = NormKind.RMS
    has_weight: bool = True
    one_plus: bool = False
    is_late: bool = False

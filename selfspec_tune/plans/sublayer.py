"""What both sub-layers of a layer share: norms around them, how their output is added, and how they are left out."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.plans.norm import NormPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SubLayerPlan:
    """A sub-layer: x + residual_scale * post(f(norm(x))). Left out, it adds nothing: its norms go with it.

    Attributes:
        norm: of its input; None: it reads the stream as it is.
        post: of its output, before that is added.
        residual_scale: what is multiplied with its output.
        silence: modules, relative to the layer, whose output, zeroed, leaves it out of the model's own forward.
    """

    silence: tuple[str, ...]
    norm: NormPlan | None = None
    post: NormPlan | None = None
    residual_scale: float = 1.0

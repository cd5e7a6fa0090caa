"""The layers that a skip set leaves."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerKind, sublayers_of


@dataclass(frozen=True, slots=True)
class LayerBlock:
    """A layer of the draft: the source layers that its attention and its MLP come from; None where it has none."""

    attention: int | None
    mlp: int | None

    @property
    def is_whole(self) -> bool:
        """Whether it has both."""
        return self.attention is not None and self.mlp is not None

    def __str__(self) -> str:
        parts = [f"attention {self.attention}"] if self.attention is not None else []
        return " + ".join(parts + ([f"MLP {self.mlp}"] if self.mlp is not None else []))


def surviving_blocks(skip_set: SkipSet) -> list[LayerBlock]:
    """The sub-layers that stay, in running order, every attention paired with the MLP that follows it.

    "MLP 3 and attention 4 skipped" leaves attention 3 and MLP 4, which make one ordinary layer: in a pre-norm model
    whose rotary embedding and window do not depend on the layer, it computes the same.
    """
    blocks: list[LayerBlock] = []
    pending: int | None = None
    for (kind, layer), is_skipped in zip(sublayers_of(skip_set.num_layers), skip_set.to_flags(), strict=True):
        if is_skipped:
            continue
        if kind is SubLayerKind.MLP:
            blocks.append(LayerBlock(pending, layer))
            pending = None
            continue
        if pending is not None:
            blocks.append(LayerBlock(pending, None))
        pending = layer
    return blocks if pending is None else [*blocks, LayerBlock(pending, None)]


def partial(blocks: list[LayerBlock]) -> list[LayerBlock]:
    """The blocks that lack their attention or their MLP."""
    return [block for block in blocks if not block.is_whole]

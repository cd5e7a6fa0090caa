"""What is left of a model when a skip set is left out, as layers that a runtime can build."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Block:
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


def surviving_blocks(skip_set: SkipSet) -> list[Block]:
    """The sub-layers that stay, in running order, every attention paired with the MLP that follows it.

    "MLP 3 and attention 4 skipped" leaves attention 3 and MLP 4, which make one ordinary layer: in a pre-norm model
    whose rotary embedding and window do not depend on the layer, it computes the same.
    """
    blocks: list[Block] = []
    pending: int | None = None
    for index, is_skipped in enumerate(skip_set.to_flags()):
        layer, is_mlp = divmod(index, 2)
        if is_skipped:
            continue
        if is_mlp:
            blocks.append(Block(pending, layer))
            pending = None
            continue
        if pending is not None:
            blocks.append(Block(pending, None))
        pending = layer
    return blocks if pending is None else [*blocks, Block(pending, None)]


def partial(blocks: list[Block]) -> list[Block]:
    """Those that lack their attention or their MLP."""
    return [block for block in blocks if not block.is_whole]

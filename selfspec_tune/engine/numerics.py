"""How torch multiplies float32 matrices, set once and recorded."""

from __future__ import annotations

import torch


def use_exact_float32() -> None:
    """Multiply float32 in float32: no TF32 on a GPU, no bfloat16 on a CPU.

    Losslessness in float32 is checked token by token; ten-bit products would break ties at random.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def describe_numerics() -> dict[str, object]:
    """The settings above, for provenance."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
    }

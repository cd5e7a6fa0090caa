#!/usr/bin/env python3
"""A copy of a checkpoint whose weights no longer lie on a 4-bit grid.

    .venv/bin/python studies/qwen2.5-coder-1.5b-dithered/dither_checkpoint.py MODEL_DIRECTORY OUT_DIRECTORY [--seed 0]

A checkpoint that was made from a 4-bit file flatters an int4 draft: its weights can be copied
without loss. This adds seeded uniform noise as wide as one 4-bit step of every group of 32
weights along the input (from half a step below to half a step above), to every matrix, so that an
int4 copy loses what it would lose of weights that never were quantised. Figures of int4
drafts are published on such copies.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
STEPS = 15  # between the least and the greatest of 16 levels


def dither(weight: Tensor, generator: torch.Generator) -> Tensor:
    """``weight`` [rows, columns] with the noise added, in its own dtype."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / STEPS
    noise = torch.rand(groups.shape, generator=generator) - 0.5
    return (groups + noise * step).view(weight.shape).to(weight.dtype)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sources = sorted(arguments.model.glob("*.safetensors"))
    if not sources:
        print(f"error: {arguments.model} holds no safetensors files.", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    for file in sorted(arguments.model.iterdir()):
        if file.suffix != ".safetensors" and file.is_file():
            shutil.copy2(file, arguments.out)
    for source in sources:
        tensors = load_file(source)
        for name, tensor in sorted(tensors.items()):
            if tensor.ndim == 2 and tensor.shape[1] % GROUP == 0:
                tensors[name] = dither(tensor, generator)
        save_file(tensors, arguments.out / source.name, metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())

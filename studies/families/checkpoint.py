#!/usr/bin/env python3
"""A GGUF file as a checkpoint in bfloat16, which can be dithered and exported.

.venv/bin/python studies/families/checkpoint.py FILE.gguf OUT_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from study_kit import run

from selfspec_tune.errors import UsageError
from selfspec_tune.models.gguf import load_gguf


def main() -> int:
    """Command line."""
    if len(sys.argv) != 3:
        raise UsageError(f"{Path(sys.argv[0]).name} takes a GGUF file and a folder to write.")
    model, tokenizer, _ = load_gguf(Path(sys.argv[1]), torch.bfloat16)
    model.save_pretrained(sys.argv[2])
    tokenizer.save_pretrained(sys.argv[2])
    return 0


if __name__ == "__main__":
    run(main)

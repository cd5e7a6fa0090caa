"""A nas draft in MLX-LM on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runners.reference import skipped
from selfspec_tune.export.write import export_draft
from selfspec_tune.models import load_model
from selfspec_tune.requests import ExportRequest
from tests.engine_kit import prompt_tokens

mlx = pytest.importorskip("mlx.core")
generation = pytest.importorskip("mlx_lm.generate")
utils = pytest.importorskip("mlx_lm.utils")

SETS = {"an MLP": SkipSet(4, (), (1,)), "a layer": SkipSet(4, (1,), (1,)), "two MLPs": SkipSet(4, (), (0, 3))}
NUM_TOKENS = 16


@pytest.mark.parametrize("name", SETS)
def test_mlx_computes_and_drafts_with_it(
    name: str, tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, skip_set = tmp_path / "draft", SETS[name]
    manifest = export_draft(ExportRequest(skip_file(tiny_llama_dir, skip_set), "nas", out, str(tiny_llama_dir)))
    assert "mlx" in manifest.launch
    draft, target = opened(out), opened(tiny_llama_dir)
    prompt = prompt_tokens(14, seed=6)
    theirs = torch.tensor(draft(mlx.array([prompt])).astype(mlx.float32).tolist())
    loaded = load_model(str(tiny_llama_dir), dtype="float32", device="cpu")
    with torch.inference_mode(), skipped(loaded, skip_set):
        model: Any = loaded.model
        ours = model(torch.tensor([prompt])).logits
    assert torch.allclose(ours, theirs, atol=1e-3)
    plain = [int(token) for token, *_ in generation.generate_step(mlx.array(prompt), target, max_tokens=NUM_TOKENS)]
    steps = generation.speculative_generate_step(
        mlx.array(prompt), target, draft, num_draft_tokens=3, max_tokens=NUM_TOKENS
    )
    assert [int(token) for token, *_ in steps] == plain


def test_where_mlx_would_lose_count_no_line_is_given(
    tiny_llama_dir: Path, tiny_qwen2_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    for number, (directory, skip_set) in enumerate(
        ((tiny_llama_dir, SkipSet(4, (2,))), (tiny_qwen2_dir, SkipSet(4, (), (1,))))
    ):
        request = ExportRequest(skip_file(directory, skip_set), "nas", tmp_path / f"draft-{number}", str(directory))
        manifest = export_draft(request)
        assert "mlx" not in manifest.launch
        assert any(note.startswith("Not for MLX-LM") for note in manifest.notes)


def opened(folder: Path) -> Any:
    model, *_ = utils.load_model(folder)
    return model

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.models import load_model
from selfspec_tune.results import DraftSettings, ModelInfo, Score, SkipConfig, SkipLayers

THRESHOLD = DraftPolicy(PolicyKind.THRESHOLD, 4, 0.0)


@pytest.fixture
def skip_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a skip.json of a skip set for the model in a directory."""

    def write(directory: Path, skip_set: SkipSet, **draft: Any) -> Path:
        loaded = load_model(str(directory), dtype="float32", device="cpu")
        file = tmp_path / "skip.json"
        SkipConfig(
            model=ModelInfo.model_validate(loaded.describe()),
            skip=SkipLayers.model_validate(skip_set.to_dict()),
            draft=DraftSettings.model_validate(Draft(skip_set, **({"policy": THRESHOLD} | draft)).to_dict()),
            score=Score(verdict="faster", num_prompts=32),
        ).save(file)
        return file

    return write

"""Models whose own code has a forward pass of fewer arguments than transformers' have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from selfspec_tune.draft import Draft
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.reference import ReferenceRunner
from selfspec_tune.engine.teacher_forcing.standalone import StandaloneReferenceScorer
from selfspec_tune.engine.teacher_forcing.trace import Window
from selfspec_tune.export.verification import along
from selfspec_tune.measure.lossless import implementation_floor
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.loaded import keep_logits
from selfspec_tune.skip_set import SkipSet
from tests.engine_kit import load, prompt_tokens
from tests.test_measure import _item

_CODE = """
from transformers import LlamaForCausalLM


class OldForCausalLM(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, attention_mask, None, past_key_values, use_cache=use_cache)
"""


class _Old(LlamaForCausalLM):
    """It computes all logits, and counts positions itself."""

    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids, None, None, past_key_values, use_cache=use_cache)


class _OlderName(LlamaForCausalLM):
    def forward(  # type: ignore[override]
        self,
        input_ids: Any,
        past_key_values: Any = None,
        use_cache: Any = None,
        position_ids: Any = None,
        num_logits_to_keep: int = 0,
    ) -> Any:
        assert num_logits_to_keep
        return super().forward(
            input_ids, None, position_ids, past_key_values, use_cache=use_cache, logits_to_keep=num_logits_to_keep
        )


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir)


@pytest.fixture(params=[_Old, _OlderName])
def old(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> LoadedModel:
    """The same model behind another forward."""
    loaded = load(tiny_llama_dir)
    loaded.model.__class__ = request.param
    return loaded


def _walk(loaded: LoadedModel) -> list[torch.Tensor]:
    runner = ReferenceRunner(loaded)
    runner.set_draft(Draft(SkipSet(4, (1,), (2,))))
    logits = [runner.prefill(prompt_tokens(9)), runner.decode(5), runner.draft_step(6)]
    runner.rewind(10)
    return [*logits, runner.verify([6, 7, 8])]


def test_the_reference_runner_asks_what_a_forward_takes(old: LoadedModel, loaded: LoadedModel) -> None:
    for ours, theirs in zip(_walk(old), _walk(loaded), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_and_floors_need_no_such_argument_either(old: LoadedModel, loaded: LoadedModel) -> None:
    prompt, answer = prompt_tokens(9), prompt_tokens(6, seed=1)
    window = Window((*prompt, *answer), 9, 14)
    draft = Draft(SkipSet(4, (1,), (2,)))
    traces = [StandaloneReferenceScorer(each, [window]).trace(draft) for each in (old, loaded)]
    assert traces[0].matches == traces[1].matches
    assert traces[0].nll == pytest.approx(traces[1].nll, rel=1e-5)
    (tokens, logprobs), (others, expected) = (along(each, draft.skip_set, prompt, answer) for each in (old, loaded))
    assert tokens == others
    assert logprobs == pytest.approx(expected, rel=1e-4)
    assert implementation_floor(ReferenceRunner(loaded), old.model, _item(prompt), answer) < 1e-4


def test_only_what_a_forward_names_is_passed(loaded: LoadedModel, old: LoadedModel) -> None:
    assert keep_logits(loaded.model, 3) == {"logits_to_keep": 3}
    expected = {"num_logits_to_keep": 3} if isinstance(old.model, _OlderName) else {}
    assert keep_logits(old.model, 3) == expected


def test_a_checkpoint_with_such_code_is_loaded_and_run(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for file in tiny_llama_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "modeling_old.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["OldForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_old.OldForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OldForCausalLM"
    for ours, theirs in zip(_walk(loaded), _walk(load(tiny_llama_dir)), strict=True):
        torch.testing.assert_close(ours, theirs)
    notices: list[str] = []
    assert choose_runner(loaded, "auto", notices.append).name == "reference"
    assert any("OldForCausalLM computes by code of its own" in notice for notice in notices)

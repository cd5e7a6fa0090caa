"""Models whose own code has a forward pass of fewer arguments than transformers' have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.engine.teacher_forcing.reference import StandaloneReferenceScorer
from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError, UsageError
from selfspec_tune.export.verify import along
from selfspec_tune.measure.lossless import implementation_differences
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.loaded import keep_logits
from tests.engine_kit import decode, draft_step, load, prompt_tokens
from tests.measure.test_measure import _item

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
    logits = [prefill(runner, prompt_tokens(9)), decode(runner, 5), draft_step(runner, 6)]
    runner.rewind(10)
    return [*logits, runner.forward([6, 7, 8]).logits]


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
    assert implementation_differences(ReferenceRunner(loaded), old.model, _item(prompt), answer).max() < 1e-4


def test_only_what_a_forward_names_is_passed(loaded: LoadedModel, old: LoadedModel) -> None:
    assert keep_logits(loaded.model, 3) == {"logits_to_keep": 3}
    expected = {"num_logits_to_keep": 3} if isinstance(old.model, _OlderName) else {}
    assert keep_logits(old.model, 3) == expected


def with_code(checkpoint: Path, folder: Path, code: str) -> Path:
    """A copy of the checkpoint that brings ``code``, whose class is `OldForCausalLM`."""
    shutil.copytree(checkpoint, folder)
    (folder / "modeling_old.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["OldForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_old.OldForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_with_such_code_is_loaded_and_run(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = with_code(tiny_llama_dir, tmp_path / "theirs", _CODE)
    loaded = load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OldForCausalLM"
    for ours, theirs in zip(_walk(loaded), _walk(load(tiny_llama_dir)), strict=True):
        torch.testing.assert_close(ours, theirs)
    notices: list[str] = []
    assert choose_runner(loaded, "auto", notices.append).name == "reference"
    assert any("OldForCausalLM computes by code of its own" in notice for notice in notices)


UNFIT: dict[str, tuple[str, str]] = {
    "tuple": ("**kwargs):\n        return super().forward(**kwargs).to_tuple()", "returns a tuple without logits"),
    "tensor": ("**kwargs):\n        return super().forward(**kwargs).logits", "returns a Tensor without logits"),
    "raises": ("**kwargs):\n        raise AttributeError('no mask')", r"fails \(AttributeError: no mask\)"),
    "raises on the second": (
        "past_key_values=None, **kwargs):\n"
        "        assert not past_key_values.get_seq_length(), 'no more'\n"
        "        return super().forward(past_key_values=past_key_values, **kwargs)",
        r"fails \(AssertionError: no more\)",
    ),
    "no cache": (
        "input_ids):\n        return super().forward(input_ids)",
        r"fails \(TypeError: .*unexpected keyword argument",
    ),
    "a cache of its own": (
        "past_key_values=None, **kwargs):\n        return super().forward(**kwargs)",
        "leaves 0 tokens in the cache that it was given, of 2",
    ),
    "flat": (
        "**kwargs):\n        output = super().forward(**kwargs)\n        output.logits = output.logits[0]\n"
        "        return output",
        r"the logits of its forward pass are \[2, 128\]",
    ),
    "no head": (
        "**kwargs):\n        return super().forward(**kwargs)\n\n"
        "    def get_output_embeddings(self):\n        return None",
        "get_output_embeddings gives no layer with a weight",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_code_that_cannot_be_decoded_with_is_refused_with_what_is_needed(
    tiny_llama_dir: Path, tmp_path: Path, name: str
) -> None:
    body, reason = UNFIT[name]
    code = "from transformers import LlamaForCausalLM\n\n\nclass OldForCausalLM(LlamaForCausalLM):\n"
    folder = with_code(tiny_llama_dir, tmp_path / "theirs", f"{code}    def forward(self, {body}\n")
    with pytest.raises(
        UnsupportedModelError, match=rf"^OldForCausalLM computes by code of its own.*{reason}"
    ) as refused:
        load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    assert "Needed is a forward pass" in str(refused.value)


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("raise RuntimeError('boo')", UnsupportedModelError, "fails while it is loaded: RuntimeError: boo"),
        ("class OldForCausalLM(", UnsupportedModelError, "fails while it is loaded: SyntaxError"),
        ("import no_such_package_at_all", UsageError, "pip install no_such_package_at_all"),
        ("", UnsupportedModelError, "fails while it is loaded: AttributeError"),
        ("import sys; sys.exit(3)", UnsupportedModelError, r"ends the program \(sys\.exit\(3\)\)"),
        (None, FileFormatError, r"names code in modeling_old\.py, which is not there"),
    ],
    ids=["raises", "syntax", "package", "class", "exit", "file"],
)
def test_code_that_cannot_be_loaded_is_to_blame_not_the_files(
    tiny_llama_dir: Path, tmp_path: Path, code: str | None, kind: type[SelfSpecError], reason: str
) -> None:
    folder = with_code(tiny_llama_dir, tmp_path / "theirs", code or "")
    if code is None:
        (folder / "modeling_old.py").unlink()
    with pytest.raises(kind, match=reason) as refused:
        load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    assert "corrupt" not in str(refused.value)

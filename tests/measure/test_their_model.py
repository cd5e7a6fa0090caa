"""The copy of the model that transformers' arms run, where bfloat16 is imitated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec_tune.engine import Limits, RawGeneration, choose_runner
from selfspec_tune.errors import RivalError
from selfspec_tune.measure import workload as workload_module
from selfspec_tune.measure.arms import Arm, autoregressive_arm, generate_arm, in_faster_format
from selfspec_tune.measure.lossless import make_check
from selfspec_tune.measure.pairs import Block, measure_block
from selfspec_tune.measure.rivals import early_exit_arm, prompt_lookup_arm
from selfspec_tune.measure.run_log import widened_of
from selfspec_tune.measure.workload import WorkItem, Workload, widened
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt
from selfspec_tune.requests import PromptOptions
from tests.engine_kit import load, prompt_tokens

ITEM = WorkItem("p", Prompt("p", "code", "some text"), tuple(prompt_tokens(20)), Limits(16))


@pytest.fixture
def workload(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    """In bfloat16, on a processor that imitates it."""
    monkeypatch.setattr(workload_module, "cpu_computes_bfloat16", lambda: False)
    loaded = load(tiny_llama_dir, "bfloat16")
    return Workload(loaded, choose_runner(loaded, "fast"), PromptOptions(max_new_tokens=16))


def _scripted(workload: Workload, own: float, wide: float, asked: list[torch.dtype] | None = None) -> Arm:
    """`in_faster_format` of an arm that takes so many seconds a token on the model and on its copy."""

    def make(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            if asked is not None:
                asked.append(loaded.dtype)
            seconds = own if loaded is workload.loaded else wide
            return RawGeneration(tokens=[3] * 8, prefill_seconds=seconds, decode_seconds=8 * seconds)

        return Arm("rival", "rival", decode, description="a rival", by_transformers=True)

    return in_faster_format(workload, make)


def test_a_widened_copy_computes_what_the_model_does_in_float32(tiny_llama_dir: Path, workload: Workload) -> None:
    loaded = workload.loaded
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    copy = widened(loaded)
    assert {weight.dtype for weight in copy.model.parameters()} == {torch.float32}
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.named_parameters())
    assert copy.fingerprint == loaded.fingerprint
    assert copy.sublayers.attention[0] is not loaded.sublayers.attention[0]
    expected: Any = load(tiny_llama_dir)
    expected.model.load_state_dict(before)
    tokens = torch.tensor([prompt_tokens(30)])
    with torch.inference_mode():
        torch.testing.assert_close(copy.model(tokens).logits, expected.model(tokens).logits)


def test_a_rival_runs_in_float32_where_that_is_faster_and_says_so(workload: Workload) -> None:
    arm = _scripted(workload, own=2.0, wide=1.0)
    assert arm.model is not None
    assert arm.model.dtype is torch.float32
    assert arm.description == "a rival, in float32, which is faster for it here"
    arm = _scripted(replace(workload, theirs=None), own=1.0, wide=2.0)
    assert (arm.model, arm.description) == (None, "a rival")


def test_both_are_timed_once_a_run(workload: Workload) -> None:
    asked: list[torch.dtype] = []
    assert _scripted(workload, 2.0, 1.0, asked).model is not None
    timed = len(asked)
    assert set(asked) == {torch.float32, torch.bfloat16}
    for other in (workload, replace(workload, cost_context=7), workload.reopened(PromptOptions())):
        assert _scripted(other, 1.0, 2.0, asked).model is not None
    assert len(asked) == timed


@pytest.mark.parametrize("why", ["the processor computes it", "no memory", "float32 already", "it fails"])
def test_elsewhere_rivals_run_on_the_model_itself(
    workload: Workload, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "the processor computes it":
        monkeypatch.setattr(workload_module, "cpu_computes_bfloat16", lambda: True)
    elif why == "no memory":
        monkeypatch.setattr(workload_module, "_ROOM", 1e12)
    elif why == "float32 already":
        loaded = load(tiny_llama_dir)
        workload = Workload(loaded, choose_runner(loaded, "fast"), PromptOptions())

    def make(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            raise RivalError("rival", "it does not run here")

        return Arm("rival", "rival", decode, by_transformers=True)

    arm = in_faster_format(workload, make) if why == "it fails" else _scripted(workload, own=2.0, wide=1.0)
    assert arm.model is None


@pytest.mark.parametrize("make", [generate_arm, prompt_lookup_arm, lambda workload: early_exit_arm(workload, 2)])
def test_another_copy_s_output_is_held_against_that_copy(workload: Workload, make: Any) -> None:
    assert workload.theirs is not None
    workload.theirs.is_widened = dict.fromkeys(("hf-generate", "hf-prompt-lookup", "hf-early-exit"), True)
    arm = make(workload)
    assert arm.model is not None
    (pair,) = measure_block(
        workload, autoregressive_arm(workload), [arm], Block(ITEM, 0, 0, 0), make_check(workload, [ITEM])
    )
    assert pair.lossless in ("identical", "numerical_tie")
    assert workload.loaded.model.config.num_hidden_layers == 4
    assert arm.model.model.config.num_hidden_layers == 4


def test_a_resumed_bench_runs_the_copy_that_its_log_says(tmp_path: Path) -> None:
    log = tmp_path / "bench.runs.jsonl"
    assert widened_of(None) == widened_of(log) == {}
    methods = '{"hf-generate at 0.5": {"name": "x", "dtype": "float32"}, "hf-early-exit at 0.5": {"name": "y"}}'
    log.write_text(f'{{"schema": "s"}}\n{{"started_session": 1, "methods": {methods}}}\n')
    assert widened_of(log) == {"hf-generate": True, "hf-early-exit": False}

"""A prompt's vector is what the model makes of it, and does not depend on the other prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfspec_tune.bench.transfer import prompt_vectors
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.measure.workload import Workload
from selfspec_tune.requests import PromptOptions
from tests import kit
from tests.engine_kit import load
from tests.search_kit import make_item


@pytest.mark.parametrize("runner", ["reference", "fast"])
def test_a_prompts_vector_is_the_mean_of_its_final_hidden_states(tiny_llama_dir: Path, runner: str) -> None:
    loaded = load(tiny_llama_dir)
    workload = Workload(loaded, choose_runner(loaded, runner), PromptOptions())
    items = [make_item(1), make_item(2, prompt_tokens=9)]
    first, second = prompt_vectors(workload, items)
    assert first.shape == second.shape == (loaded.model.config.hidden_size,)
    with torch.inference_mode():
        tokens = torch.tensor([items[1].tokens])
        states = loaded.model(tokens, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(second, states.float().mean(0).numpy(), rtol=1e-5, atol=1e-6)
    (alone,) = prompt_vectors(workload, [replace(items[0], id="another")])
    np.testing.assert_array_equal(alone, first)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama4_text", "gemma3"])
def test_the_decoder_is_found_wherever_its_layers_are(tmp_path: Path, kind: str) -> None:
    loaded = load(kit.tiny_of_type(tmp_path, kind))
    workload = Workload(loaded, ReferenceRunner(loaded), PromptOptions())
    item = make_item(1)
    (vector,) = prompt_vectors(workload, [item])
    with torch.inference_mode():
        states = loaded.model(torch.tensor([item.tokens]), output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(vector, states.float().mean(0).numpy(), rtol=1e-5, atol=1e-6)

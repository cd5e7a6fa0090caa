"""Embeddings by their plans, to the last bit of the model's own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfspec_tune.engine.layers.embedding import Embedding
from selfspec_tune.models.bound import bind
from tests.families import FAMILIES


def half_model(name: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[name].config))
    return model.to(torch.bfloat16).eval()


@pytest.mark.parametrize("name", ["llama", "gemma", "granite"])
def test_scales_are_rounded_where_the_model_rounds_them(name: str) -> None:
    model = half_model(name)
    tokens = torch.arange(160)
    with torch.inference_mode():
        ours = Embedding(bind(model))(tokens, tokens)
        theirs = model.model(input_ids=tokens[None], output_hidden_states=True).hidden_states[0][0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)

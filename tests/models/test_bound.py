"""A plan put to a model: whatever the plan does not know of is a reason to refuse, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.bound import unbound_reason
from tests import kit
from tests.engine_kit import load


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir)


def _scaled_embedding(model: Any) -> None:
    model.model.embed_tokens.embed_scale = nn.Buffer(torch.tensor(2.0))


def _adapter(model: Any) -> None:
    model.model.layers[1].self_attn.v_proj.lora_A = nn.Linear(4, 4)


class _Halved(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / 2


def _another_linear(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.__class__ = _Halved


def _set(path: str, name: str, value: object) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


def _activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.GELU()


def _fewer_rows(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = nn.Linear(kit.HIDDEN, kit.HIDDEN, bias=False)


def _some_biases(model: Any) -> None:
    model.model.layers[1].self_attn.k_proj.bias = nn.Parameter(torch.ones(32))


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "parameter": (
        _set("model.layers.0.self_attn", "sinks", nn.Parameter(torch.ones(4))),
        "it has a model.layers.0.self_attn.sinks that our own loops do not know",
    ),
    "buffer": (
        _set("model.layers.0", "layer_scalar", nn.Buffer(torch.ones(1))),
        "it has a model.layers.0.layer_scalar",
    ),
    "part of the decoder": (_set("model", "embed_norm", nn.LayerNorm(kit.HIDDEN)), "model.embed_norm.weight"),
    "part of the model": (_set("", "multiplier", nn.Linear(1, 1)), "it has a multiplier.weight"),
    "embedding": (_scaled_embedding, "its model.embed_tokens is no plain Embedding"),
    "adapter": (_adapter, "its model.layers.1.self_attn.v_proj is no plain Linear"),
    "linear layer": (_another_linear, "_Halved computes by code of its own"),
    "activation": (_activation, "its model.layers.1.mlp.act_fn is GELU, where SiLU is planned"),
    "shape": (_fewer_rows, "its model.layers.0.mlp.up_proj is 64 × 64, where 128 × 64 is planned"),
    "biases": (_some_biases, "biases on some of self_attn.q_proj, self_attn.k_proj, self_attn.v_proj only"),
    "missing": (_set("model.layers.0.mlp", "up_proj", None), "its model.layers.0.mlp.up_proj is missing"),
    "patched": (_set("model.norm", "forward", lambda hidden: hidden), "its model.norm computes more than its class"),
    "quantised": (_set("", "is_quantized", True), "its weights are quantised"),
    "adapted": (_set("", "_hf_peft_config_loaded", True), "an adapter is applied to its weights"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_unknown_thing_in_one_module_is_enough(loaded: LoadedModel, name: str) -> None:
    change, reason = CHANGES[name]
    assert unbound_reason(loaded.model) is None
    change(loaded.model)
    assert reason in (unbound_reason(loaded.model) or "")


def test_a_refused_model_runs_on_the_reference_for_that_reason(loaded: LoadedModel) -> None:
    loaded.model.model.layers[0].layer_scalar = nn.Buffer(torch.ones(1))
    notices: list[str] = []
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert "layer_scalar" in notices[0]
    with pytest.raises(UnsupportedModelError, match=r"`runner` fast cannot serve .*layer_scalar"):
        choose_runner(loaded, "fast")


def test_a_hook_is_more_than_a_class_computes(loaded: LoadedModel) -> None:
    handle = loaded.model.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(lambda *_: None)
    assert unbound_reason(loaded.model) == "its model.layers.0.mlp.down_proj computes more than its class does"
    handle.remove()
    assert unbound_reason(loaded.model) is None


def test_a_configuration_that_cannot_be_read_is_a_reason_too(loaded: LoadedModel) -> None:
    vars(loaded.model.config)["rope_parameters"] = 3  # as no check of transformers lets it be
    reason = unbound_reason(loaded.model) or ""
    assert reason.startswith("its configuration cannot be read (AttributeError")
    with pytest.raises(UnsupportedModelError, match=r"cannot serve .*cannot be read"):
        choose_runner(loaded, "native")


def test_a_class_with_code_of_its_own_is_refused_by_name() -> None:
    class WrongInTheMiddle(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    for kind, expected in (
        (LlamaForCausalLM, None),
        (WrongInTheMiddle, "its WrongInTheMiddle computes by code"),
    ):
        reason = unbound_reason(kind(config))
        assert reason is None if expected is None else expected in (reason or "")

"""What our own loops serve they know wholly: everything else in a model is a reason to refuse, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.expected import expected_runner
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import ALIASES, LoadedModel
from selfspec_tune.models.structure import structure_reason, unsupported_reason
from selfspec_tune.models.sublayers import find_sublayers
from tests import kit
from tests.engine_kit import load

_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def of_type(directory: Path, model_type: str, **settings: object) -> LoadedModel:
    """A tiny model of any Llama-like architecture."""
    sizes: dict[str, Any] = {
        "hidden_size": kit.HIDDEN,
        "intermediate_size": 2 * kit.HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "pad_token_id": kit.EOS,
        "bos_token_id": kit.BOS,
        "eos_token_id": kit.EOS,
    }
    return load(kit.save_random(AutoConfig.for_model(model_type, **(sizes | settings)), directory))


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir)


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("olmo", {"clip_qkv": 0.5}, "no weight"),
    ("olmo", {}, "no weight"),
    ("ministral3", {"head_dim": 16, "rope_parameters": _ROPE | {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3]}},
        "mrope_section",
    ),
    ("granite", {"residual_multiplier": 0.9}, "residual_multiplier"),
    ("granite", {"embedding_multiplier": 12.0}, "embedding_multiplier"),
    ("granite", {"logits_scaling": 8.0}, "logits_scaling"),
    ("mistral", {"sliding_window": 64}, "sliding-window"),
    ("smollm3", {}, "use_rope"),
]


@pytest.mark.parametrize(("model_type", "settings", "reason"), REFUSED)
def test_what_an_architecture_has_beyond_llama_is_refused_by_name(
    tmp_path: Path, model_type: str, settings: dict[str, object], reason: str
) -> None:
    loaded, notices = of_type(tmp_path, model_type, **settings), list[str]()
    assert reason in (unsupported_reason(loaded) or "")
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert reason in notices[0]
    with pytest.raises(UnsupportedModelError, match=rf"`runner` fast cannot serve .*{reason}"):
        choose_runner(loaded, "fast", notices.append)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": None}),
        ("seed_oss", {"head_dim": 16}),
        ("ministral3", {"head_dim": 16, "rope_parameters": _ROPE | {"llama_4_scaling_beta": 0.0}}),
        ("granite", {"attention_multiplier": 0.25}),
    ],
)
def test_what_changes_nothing_is_no_reason(tmp_path: Path, model_type: str, settings: dict[str, object]) -> None:
    loaded = of_type(tmp_path, model_type, **settings)
    assert unsupported_reason(loaded) is None
    assert isinstance(choose_runner(loaded, "fast"), FastRunner)


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


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "attention": (_set("model.layers.1.self_attn", "softcap", 30.0), "layer 1 has an attention that has softcap"),
    "hidden": (_set("model.layers.1.self_attn", "_sink", 0.5), "_sink"),
    "MLP": (_set("model.layers.0.mlp", "limit", 7.0), "layer 0 has an MLP that has limit"),
    "layer": (_set("model.layers.0", "alpha", 2), "layer 0 has alpha"),
    "norm": (_set("model.layers.0.input_layernorm", "offset", 1.0), "offset"),
    "final norm": (
        _set("model.norm", "bias", nn.Parameter(torch.ones(kit.HIDDEN))),
        "final norm has no weight",
    ),
    "rope": (_set("model.rotary_emb", "interleaved", True), "rotary_emb has interleaved"),
    "model": (_set("", "logit_scale", 0.1), "it has logit_scale"),
    "decoder": (_set("model", "embed_scale", 8.0), "it has embed_scale"),
    "parameter": (_set("model.layers.0.self_attn", "sinks", nn.Parameter(torch.ones(4))), "sinks"),
    "buffer": (_set("model.layers.0", "layer_scalar", nn.Buffer(torch.ones(1))), "layer_scalar"),
    "part of the decoder": (_set("model", "embed_norm", nn.LayerNorm(kit.HIDDEN)), "further parts embed_norm"),
    "part of the model": (_set("", "multiplier", nn.Linear(1, 1)), "further parts multiplier"),
    "embedding": (_scaled_embedding, "its embedding is no plain Embedding"),
    "adapter": (_adapter, "layer 1 has a v_proj that is no plain Linear"),
    "linear layer": (_another_linear, "layer 0 has a up_proj that is no plain Linear (_Halved)"),
    "patched": (_set("model.norm", "forward", lambda hidden: hidden), "final norm"),
    "not causal": (_set("model.layers.0.self_attn", "is_causal", False), "is not causal"),
    "cache of another": (_set("model.layers.1.self_attn", "layer_idx", 0), "uses the cache of layer 0"),
    "head size": (_set("model.layers.1.self_attn", "head_dim", 8), "has heads of 8"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_unknown_thing_in_one_module_is_enough(loaded: LoadedModel, name: str) -> None:
    change, reason = CHANGES[name]
    assert unsupported_reason(loaded) is None
    change(loaded.model)
    assert reason in (unsupported_reason(loaded) or "")


def test_a_norm_that_hides_its_epsilon_is_refused(loaded: LoadedModel) -> None:
    norm: Any = loaded.sublayers.layers[1].post_attention_layernorm
    norm.epsilon = norm.variance_epsilon
    del norm.variance_epsilon
    assert "has not one epsilon" in (unsupported_reason(loaded) or "")


def test_a_hook_is_more_than_a_class_computes(loaded: LoadedModel) -> None:
    handle = loaded.model.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(lambda *_: None)
    assert "down_proj that computes more than its class does" in (unsupported_reason(loaded) or "")
    handle.remove()
    assert unsupported_reason(loaded) is None


def test_a_model_s_own_code_may_read_any_field(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.model.config.attn_logit_softcapping = 30.0
    assert unsupported_reason(loaded) is None  # transformers' Llama reads no such field
    monkeypatch.setattr(type(loaded.model), "__module__", "transformers_modules.theirs")
    assert unsupported_reason(loaded) == (
        "its configuration has attn_logit_softcapping, which our own loops do not know"
    )
    loaded.model.config.attn_logit_softcapping = None
    assert unsupported_reason(loaded) is None


def test_a_structure_that_cannot_be_read_is_a_reason_too(loaded: LoadedModel) -> None:
    vars(loaded.model.config)["rope_parameters"] = 3  # as no check of transformers lets it be
    reason = unsupported_reason(loaded) or ""
    assert reason.startswith("its structure cannot be read (AttributeError")
    with pytest.raises(UnsupportedModelError, match=r"cannot serve .*cannot be read"):
        choose_runner(loaded, "native")


# -- what an architecture gets, told from its class ----------------------------------------------------------------


def test_the_aliases_runners_are_told_from_their_architectures() -> None:
    found = {model.model_type: expected_runner(model.model_type, model.settings) for model in ALIASES.values()}
    assert {name for name, runner in found.items() if runner.name == "reference"} == {"qwen3", "gemma2"}
    assert found["llama"].name in ("graphs", "native", "fast")
    assert "sliding-window" in (found["gemma2"].reason or "")
    assert "q, k, v and o projections" in (found["qwen3"].reason or "")


def test_a_window_by_default_is_told_from_one_that_a_checkpoint_lacks() -> None:
    assert expected_runner("mistral", {}).name == "reference"
    assert expected_runner("mistral", {"sliding_window": None}).name != "reference"


def test_an_architecture_that_cannot_draft_for_itself_says_so() -> None:
    assert "cannot draft for itself" in (expected_runner("mamba", {}).reason or "")


def test_a_class_with_code_of_its_own_is_refused_by_name() -> None:
    class WrongInTheMiddle(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    for kind, expected in (
        (LlamaForCausalLM, None),
        (WrongInTheMiddle, "its WrongInTheMiddle computes by code"),
    ):
        model = kind(config)
        reason = structure_reason(model, find_sublayers(model))
        assert reason is None if expected is None else expected in (reason or "")

"""Every family's drafts in transformers' hands compute what the reference runner does without the same sub-layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.rounds import num_accepted, num_drafted
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, self_speculative
from selfspec_tune.engine.runners.reference import ReferenceRunner, skipped
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.export.formats import export_format
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.plans import BlockOrder, features
from tests import kit
from tests.engine_kit import prompt_tokens
from tests.families import FAMILIES

# What a layer is by its place in a way that no configuration restates: where sub-layers are joined; always.
BY_PLACE_IF_JOINED = {"ernie4_5_moe": "another mlp"}
BY_PLACE = {"gpt2": "another attention.scale"}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def target(name: str, tmp_path_factory: pytest.TempPathFactory) -> CheckpointTarget:
    folder = tmp_path_factory.mktemp("family")
    kit.save_random(AutoConfig.for_model(**FAMILIES[name].config), folder)
    return CheckpointTarget(str(folder), folder)


@pytest.fixture(scope="module")
def loaded(target: CheckpointTarget) -> LoadedModel:
    return load_model(target.model, dtype="float32", device="cpu")


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([prompt_tokens(24)])).logits  # type: ignore[no-any-return]


def write(format_: str, target: CheckpointTarget, skip_set: SkipSet, out: Path, **settings: Any) -> Path:
    out.mkdir()
    (out / "custom_generate").mkdir()
    export_format(format_).write(Job(skip_set, target, **settings), out, out)
    return out


def check(format_: str, loaded: LoadedModel, target: CheckpointTarget, skip_set: SkipSet, out: Path) -> None:
    with skipped(loaded, skip_set):
        wanted = logits_of(loaded.model)
    assert not torch.equal(wanted, logits_of(loaded.model))
    write(format_, target, skip_set, out)
    draft = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=format_ == "nas").eval()
    assert torch.allclose(logits_of(draft), wanted, rtol=0, atol=1e-4 if format_ == "nas" else 0)


def refused(format_: str, target: CheckpointTarget, skip_set: SkipSet, out: Path, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(reason)):
        write(format_, target, skip_set, out)


def test_zeroed_sublayers_add_nothing(loaded: LoadedModel, target: CheckpointTarget, tmp_path: Path) -> None:
    layers = loaded.num_layers
    check("hf-zero", loaded, target, SkipSet(layers, (0,), tuple(range(1, layers))), tmp_path / "draft")


def test_a_checkpoint_is_known_by_its_weights(loaded: LoadedModel, target: CheckpointTarget) -> None:
    assert target.weights_fingerprint == loaded.fingerprint


def test_a_llama_by_any_name_is_written_as_one(loaded: LoadedModel, target: CheckpointTarget, tmp_path: Path) -> None:
    skip_set, layout = SkipSet(loaded.num_layers, (0,), (1,)), target.layout
    more = [f"it has {feature}" for feature in sorted(features(layout.planned))[:1]]
    more += ["it is more than a decoder"] if layout.planned.beside else []
    more += ["it has biases in"] if any(name.endswith("o_proj.bias") for name in layout.names.parts) else []
    if not more:
        check("nas", loaded, target, skip_set, tmp_path / "draft")
    else:
        refused("nas", target, skip_set, tmp_path / "draft", more[0])


def test_layers_and_sublayers_that_follow_each_other_are_joined_or_refused(
    name: str, loaded: LoadedModel, target: CheckpointTarget, tmp_path: Path
) -> None:
    whole, joined = SkipSet(loaded.num_layers, (1,), (1,)), SkipSet(loaded.num_layers, (1,), (0,))
    reason = BY_PLACE.get(name) or BY_PLACE_IF_JOINED.get(name)
    if target.outline.planned.layers[0].order is BlockOrder.PARALLEL:
        reason = "side by side, so attention 0 + MLP 1 are no layer"
    if reason is None:
        check("hf-draft", loaded, target, joined, tmp_path / "draft")
        return
    refused("hf-draft", target, joined, tmp_path / "joined", reason)
    if name in BY_PLACE:
        refused("hf-draft", target, whole, tmp_path / "draft", reason)
    else:
        check("hf-draft", loaded, target, whole, tmp_path / "draft")


def test_it_drafts_in_generate_as_our_engine_does(
    loaded: LoadedModel, target: CheckpointTarget, tmp_path: Path
) -> None:
    layers, prompt, length = loaded.num_layers, prompt_tokens(8, seed=2), 8
    draft = Draft(SkipSet(layers, (0,), (layers - 1,)), DraftPolicy(PolicyKind.THRESHOLD, 3, 0.1), vocabulary=100)
    out = write("transformers-generate", target, draft.skip_set, tmp_path / "x", policy=draft.policy, vocabulary=100)
    ours = self_speculative(ReferenceRunner(loaded), prompt, Limits(length, frozenset()), Sampler(), draft)
    counts: dict[str, int] = {}
    how = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    ids = torch.tensor([prompt])
    how |= {"custom_generate": str(out), "trust_remote_code": True, "draft_counts": counts}
    text = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    assert text[0, 8:].tolist() == list(ours.tokens)
    assert (counts["drafted"], counts["accepted"]) == (num_drafted(ours.rounds), num_accepted(ours.rounds))
    assert counts["drafted"]

"""Self-speculation inside transformers, from an exported directory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.rounds import num_accepted, num_drafted
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, self_speculative
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.export.write import export_draft
from selfspec_tune.models import load_model
from selfspec_tune.requests import ExportRequest
from tests.covering import cover
from tests.engine_kit import prompt_tokens
from tests.enumeration import EveryWay, distribution

CHECKPOINTS = ["tiny_llama_dir", "tiny_qwen2_dir"]
SETS = {
    "an attention": SkipSet(4, (2,)),
    "an MLP": SkipSet(4, (), (1,)),
    "the first attention": SkipSet(4, (0,)),
    "a layer and more": SkipSet(4, (1, 3), (1, 2)),
}
POLICIES = {
    "fixed": DraftPolicy(PolicyKind.FIXED, 4),
    "threshold": DraftPolicy(PolicyKind.THRESHOLD, 6, 0.2),
}


@pytest.fixture(params=CHECKPOINTS)
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def exported(directory: Path, skip_set: SkipSet, skip_file: Callable[..., Path], tmp_path: Path, **draft: Any) -> Path:
    out = tmp_path / "generate"
    file = skip_file(directory, skip_set, **draft)
    export_draft(ExportRequest(file, "transformers-generate", out, str(directory), force=True))
    return out


def loaded_from(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def generated(model: Any, out: Path | None = None, **how: Any) -> Any:
    ids = torch.tensor([prompt_tokens(12, seed=2)])
    how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | how
    if out is not None:
        how |= {"custom_generate": str(out), "trust_remote_code": True}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **how)


@cover(indirect=["directory"], directory=CHECKPOINTS, name=list(SETS), policy=list(POLICIES), vocabulary=[None, 20])
def test_it_generates_and_drafts_as_our_engine_does(
    name: str, policy: str, vocabulary: int | None, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = exported(directory, SETS[name], skip_file, tmp_path, policy=POLICIES[policy], vocabulary=vocabulary)
    model, counts = loaded_from(directory), dict[str, int]()
    plain = generated(model)
    assert torch.equal(generated(model, out, draft_counts=counts), plain)
    loaded = load_model(str(directory), dtype="float32", device="cpu")
    limits = Limits(24, frozenset(loaded.eos_token_ids))
    draft = Draft(SETS[name], POLICIES[policy], vocabulary=vocabulary)
    ours = self_speculative(FastRunner(loaded), prompt_tokens(12, seed=2), limits, Sampler(), draft)
    if ours.stop_reason != "eos":  # ours drafts no further past an end of sequence
        assert (counts["drafted"], counts["accepted"]) == (num_drafted(ours.rounds), num_accepted(ours.rounds))
    assert torch.equal(generated(model), plain)  # nothing of it stays in the model


@pytest.mark.parametrize(
    "how",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [7, 8]]},
        {"min_new_tokens": 20},
        {"num_beams": 1, "suppress_tokens": [3, 9]},
    ],
    ids=lambda how: next(iter(how)),
)
def test_logits_processors_work_as_ever(
    how: dict[str, Any], directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["a layer and more"], skip_file, tmp_path), loaded_from(directory)
    assert torch.equal(generated(model, out, **how), generated(model, **how))


def test_a_streamer_gets_every_token_in_order(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[list[int]] = []
            self.has_ended = False

        def put(self, value: torch.Tensor) -> None:
            self.pieces.append(value.flatten().tolist())

        def end(self) -> None:
            self.has_ended = True

    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    ours, theirs = Kept(), Kept()
    generated(model, out, streamer=ours)
    generated(model, streamer=theirs)
    assert ours.pieces == theirs.pieces
    assert ours.has_ended


def test_scores_and_logits_are_those_of_plain_generation(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["an attention"], skip_file, tmp_path), loaded_from(directory)
    how = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.2}
    ours, theirs = generated(model, out, **how), generated(model, **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        assert torch.allclose(torch.cat(getattr(ours, name)), torch.cat(getattr(theirs, name)), atol=1e-4)


def test_stopping_criteria_end_it_at_the_same_token(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    plain = generated(model)
    end = int(plain[0, -6])
    assert torch.equal(generated(model, out, eos_token_id=end), generated(model, eos_token_id=end))


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"guidance_scale": 1.5},
        {"watermarking_config": WatermarkingConfig()},
        {"cache_implementation": "static"},
    ],
)
def test_what_it_does_not_do_is_decoded_plainly(
    how: dict[str, Any], directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    counts: dict[str, int] = {}
    assert torch.equal(generated(model, out, draft_counts=counts, **how), generated(model, **how))
    assert not counts.get("drafted")


def test_stop_strings_end_it(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.decode(generated(model)[0, 20:22])
    how = {"stop_strings": [text], "tokenizer": tokenizer}
    assert torch.equal(generated(model, out, **how), generated(model, **how))


def test_a_cache_of_the_users_is_filled(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    out, model = exported(directory, SETS["the first attention"], skip_file, tmp_path), loaded_from(directory)
    cache = DynamicCache()
    text = generated(model, out, **{load_model(str(directory)).cache_argument: cache})
    assert cache.get_seq_length() == text.shape[1] - 1


@pytest.mark.parametrize("is_all", [True, False], ids=["the whole text", "new tokens alone"])
def test_a_conversation_goes_on_from_its_cache(
    is_all: bool, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["a layer and more"], skip_file, tmp_path), loaded_from(directory)
    name = load_model(str(directory)).cache_argument
    first, second = prompt_tokens(12, seed=2), prompt_tokens(5, seed=6)

    def answer(folder: dict[str, Any]) -> torch.Tensor:
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, name: DynamicCache()} | folder
        ids = torch.tensor([first])
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        text = torch.cat((ids, torch.tensor([second])), 1)
        given = text if is_all else text[:, how[name].get_seq_length() :]
        made: torch.Tensor = model.generate(given, attention_mask=torch.ones_like(text), **how)
        return made[:, given.shape[1] :]

    assert torch.equal(answer({"custom_generate": str(out), "trust_remote_code": True}), answer({}))


def test_a_window_cache_of_the_users_is_filled(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import MistralConfig

    from tests import kit

    sizes = {"hidden_size": kit.HIDDEN, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "sliding_window": 8}
    directory = kit.save_random(MistralConfig(**sizes, pad_token_id=0), tmp_path / "window")
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    name, counts = load_model(str(directory)).cache_argument, dict[str, int]()
    cache = DynamicCache(config=model.config)
    text = generated(model, out, draft_counts=counts, **{name: cache})
    assert torch.equal(text, generated(model))
    assert cache.get_seq_length() == text.shape[1] - 1
    assert not counts.get("drafted")
    assert torch.equal(generated(model, out, draft_counts=counts), text)
    assert counts["drafted"] > 0


def test_sublayers_that_return_more_than_a_tensor_are_left_out_too(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(tiny_llama_dir, SETS["an MLP"], skip_file, tmp_path), loaded_from(tiny_llama_dir)

    class Pair(torch.nn.Module):
        """An MLP that also says how it routed, as gpt-oss has it."""

        def __init__(self, mlp: torch.nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.mlp(hidden_states), hidden_states

    layer = model.model.layers[1]
    layer.mlp = Pair(layer.mlp)

    def forward(hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **named)
        hidden_states = residual + hidden_states
        added, _ = layer.mlp(layer.post_attention_layernorm(hidden_states))
        return hidden_states + added

    layer.forward = forward
    counts: dict[str, int] = {}
    assert torch.equal(generated(model, out, draft_counts=counts), generated(model))
    assert counts["drafted"] > 0


def test_a_processor_may_work_in_place(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    class Shift(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
            scores[:, int(input_ids[0, -1]) % scores.shape[1]] -= 1.0
            return scores

    out, model = exported(directory, SETS["an attention"], skip_file, tmp_path), loaded_from(directory)
    how = {"return_dict_in_generate": True, "output_scores": True}
    ours, theirs = (generated(model, folder, logits_processor=[Shift()], **how) for folder in (out, None))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.allclose(torch.cat(ours.scores), torch.cat(theirs.scores), atol=1e-4)


def test_what_the_models_own_configuration_asks_for_counts(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    model.generation_config.num_beams = 3
    given = {"generation_config": GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)}
    ids = torch.tensor([prompt_tokens(12, seed=2)])
    ours, theirs = (
        model.generate(ids, attention_mask=torch.ones_like(ids), **given, **how)
        for how in ({"custom_generate": str(out), "trust_remote_code": True}, {})
    )
    assert torch.equal(ours, theirs)


def test_no_draft_is_longer_than_was_asked_for(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    out, file = tmp_path / "short", skip_file(directory, SETS["an MLP"], policy=POLICIES["fixed"])
    manifest = export_draft(ExportRequest(file, "transformers-generate", out, str(directory), draft_tokens=2))
    assert manifest.draft_tokens == manifest.settings["max_draft_tokens"] == 2
    counts: dict[str, int] = {}
    generated(loaded_from(directory), out, draft_counts=counts)
    assert 0 < counts["drafted"] <= 2 * counts["rounds"]


def test_several_sequences_are_decoded_plainly(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    out, model = exported(directory, SETS["an MLP"], skip_file, tmp_path), loaded_from(directory)
    ids = torch.tensor([prompt_tokens(9, seed=2), prompt_tokens(9, seed=3)])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    ours = model.generate(ids, custom_generate=str(out), trust_remote_code=True, **how)
    assert torch.equal(ours, model.generate(ids, **how))


@pytest.mark.parametrize("vocabulary", [None, 20])  # in which the answer draws on ids of the prompt too
def test_sampling_keeps_the_distribution(
    tiny_llama_dir: Path,
    skip_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: int | None,
) -> None:
    policy = DraftPolicy(PolicyKind.FIXED, 3)
    draft: dict[str, Any] = {"policy": policy, "vocabulary": vocabulary}
    out = exported(tiny_llama_dir, SETS["a layer and more"], skip_file, tmp_path, **draft)
    model = loaded_from(tiny_llama_dir)
    how = {"do_sample": True, "top_k": 2, "temperature": 1.5, "max_new_tokens": 4}

    def answer(every: EveryWay, folder: Path | None) -> tuple[int, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, **__: every.uniform())
            patch.setattr(torch, "multinomial", lambda shares, *_, **__: drawn(every, shares))
            return tuple(generated(model, folder, **how)[0, 12:].tolist())

    plain, drafted = (distribution(Sampler(1.0), partial(answer, folder=folder)) for folder in (None, out))
    assert len(plain) == 2**4
    assert drafted == pytest.approx(plain, abs=1e-5)


def drawn(every: EveryWay, shares: torch.Tensor) -> torch.Tensor:
    """One of [vocabulary], or of each row of [1, vocabulary]."""
    return torch.tensor(every.draw(shares.flatten())).expand(*shares.shape[:-1], 1)


def test_the_code_needs_nothing_of_ours_and_knows_its_model(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    from tests import kit

    out = exported(directory, SETS["an MLP"], skip_file, tmp_path)
    code = (out / "custom_generate" / "generate.py").read_text()
    assert "import selfspec" not in code
    assert "from selfspec" not in code
    deeper = loaded_from(kit.tiny_llama(tmp_path / "deeper", layers=6))
    with pytest.raises(ValueError, match=r"a model of 4 layers .* this one has 6"):
        generated(deeper, out)

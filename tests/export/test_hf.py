"""Drafts that transformers loads, against the model's own forward with sub-layers skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runners.reference import skipped
from selfspec_tune.errors import FileFormatError, SkipSetError, UnsupportedModelError, UsageError
from selfspec_tune.export.checkpoint import INDEX, Checkpoint, write_checkpoint
from selfspec_tune.export.verify import verify_export
from selfspec_tune.export.write import export_draft
from selfspec_tune.models import load_model
from selfspec_tune.requests import ExportRequest
from selfspec_tune.results import MANIFEST, ExportManifest, SkipLayers
from tests.engine_kit import prompt_tokens
from tests.export.sets import SINGLE

WHOLE = {
    "one layer": SkipSet(4, (1,), (1,)),
    "the last layer": SkipSet(4, (3,), (3,)),
    "sub-layers that make a layer": SkipSet(4, (2,), (1,)),
    "two layers and a pair": SkipSet(4, (0, 2), (0, 1)),
}


@pytest.fixture(params=["tiny_llama_dir", "tiny_qwen2_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def exported(
    format_: str, directory: Path, skip_set: SkipSet, skip_file: Callable[..., Path], tmp_path: Path
) -> tuple[Path, ExportManifest]:
    out = tmp_path / "draft"
    request = ExportRequest(skip_file(directory, skip_set), format_, out, str(directory))
    return out, export_draft(request)


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([prompt_tokens(24)])).logits  # type: ignore[no-any-return]


def expected(directory: Path, skip_set: SkipSet) -> torch.Tensor:
    loaded = load_model(str(directory), dtype="float32", device="cpu")
    with skipped(loaded, skip_set):
        return logits_of(loaded.model)


def loaded_from(out: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize("name", WHOLE)
def test_whole_layers_compute_what_the_skipped_model_does(
    name: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, manifest = exported("hf-draft", directory, WHOLE[name], skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, WHOLE[name]))
    assert manifest.target_bytes is not None
    assert manifest.draft_bytes < manifest.target_bytes
    assert AutoTokenizer.from_pretrained(out).encode("a b")


@pytest.mark.parametrize("name", [*WHOLE, *SINGLE])
def test_zeroed_sublayers_compute_what_the_skipped_model_does(
    name: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    skip_set = (WHOLE | SINGLE)[name]
    out, manifest = exported("hf-zero", directory, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))
    assert any("as slow as its target" in note for note in manifest.notes)


@pytest.mark.parametrize("name", [*WHOLE, *SINGLE])
def test_a_nas_directory_computes_what_the_skipped_model_does(
    name: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    skip_set = (WHOLE | SINGLE)[name]
    out, manifest = exported("nas", directory, skip_set, skip_file, tmp_path)
    draft = loaded_from(out, trust_remote_code=True)
    assert torch.allclose(logits_of(draft), expected(directory, skip_set), atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["block_configs"])
    assert {"transformers", "vllm", "sglang"} <= set(manifest.launch)
    has_biases = "qwen2" in str(directory)
    assert ("tensorrt-llm" in manifest.launch) == (out / "trtllm.yaml").exists() == (not has_biases)
    assert any("Not for TensorRT-LLM" in note for note in manifest.notes) == has_biases


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("rope", ROPES)
def test_a_nas_directory_keeps_how_positions_are_scaled(
    rope: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    scaled = tmp_path / "scaled"
    shutil.copytree(directory, scaled)
    config = json.loads((scaled / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    (scaled / "config.json").write_text(json.dumps(config | {"rope_parameters": ROPES[rope] | {"rope_theta": theta}}))
    skip_set = SINGLE["some"]
    out, _ = exported("nas", scaled, skip_set, skip_file, tmp_path)
    ours = logits_of(loaded_from(out, trust_remote_code=True))
    assert torch.allclose(ours, expected(scaled, skip_set), atol=1e-5)
    assert not torch.allclose(ours, expected(directory, skip_set), atol=1e-2)
    written = json.loads((out / "config.json").read_text())
    assert written["rope_scaling"]["rope_type"] == rope


@pytest.mark.parametrize("format_", ["hf-draft", "hf-zero", "nas"])
def test_assisted_generation_gives_what_plain_generation_does(
    format_: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    skip_set = WHOLE["sub-layers that make a layer"] if format_ == "hf-draft" else SINGLE["some"]
    out, _ = exported(format_, directory, skip_set, skip_file, tmp_path)
    draft = loaded_from(out, **({"trust_remote_code": True} if format_ == "nas" else {}))
    draft.generation_config.update(
        num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    target = loaded_from(directory)
    prompt = {"input_ids": torch.tensor([prompt_tokens(12)]), "max_new_tokens": 24, "do_sample": False}
    assert torch.equal(target.generate(**prompt, assistant_model=draft), target.generate(**prompt))


def test_what_would_leave_half_a_layer_is_no_whole_layers_draft(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(SkipSetError, match=r"attention 2 alone.*`to` nas"):
        exported("hf-draft", directory, SkipSet(4, (), (2,)), skip_file, tmp_path)
    assert not (tmp_path / "draft").exists()
    assert not list(tmp_path.glob(".draft*"))


def test_a_model_that_is_no_llama_is_refused_by_nas(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import GPT2Config

    from tests import kit

    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(n_layer=3, n_embd=kit.HIDDEN, n_head=4, vocab_size=128, n_positions=64, **ends)
    directory = kit.save_random(config, tmp_path / "gpt2")
    with pytest.raises(UnsupportedModelError, match=r"type gpt2.*`to` hf-draft"):
        exported("nas", directory, SkipSet(3, (1,)), skip_file, tmp_path)
    out, _ = exported("hf-draft", directory, SkipSet(3, (1,), (1,)), skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, SkipSet(3, (1,), (1,))))


def test_a_sharded_checkpoint_is_read_and_written_file_by_file(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    source, sharded = Checkpoint(directory), tmp_path / "sharded"
    sharded.mkdir()
    tensors = ((name, source.read(name)) for name in source.tensors)
    total = write_checkpoint(sharded, tensors, source.config, shard_bytes=100_000)
    assert total == source.num_bytes
    assert len(set(json.loads((sharded / INDEX).read_text())["weight_map"].values())) > 1
    for file in source.beside:
        (sharded / file.name).write_bytes(file.read_bytes())
    skip_set = WHOLE["one layer"]
    out, _ = exported("hf-draft", sharded, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))


def test_tied_weights_stay_tied(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from tests import kit

    directory = kit.tiny_llama(tmp_path / "tied", tied=True)
    for format_ in ("hf-draft", "nas"):
        skip_set = SkipSet(4, (1,), (1,))
        out, _ = exported(format_, directory, skip_set, skip_file, tmp_path)
        assert "lm_head.weight" not in Checkpoint(out).tensors
        draft = loaded_from(out, trust_remote_code=True)
        assert torch.allclose(logits_of(draft), expected(directory, skip_set), atol=1e-5)
        (tmp_path / "draft").rename(tmp_path / format_)


def test_an_export_is_not_overwritten_without_force(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = skip_file(directory, SkipSet(4, (1,), (1,)))
    request = ExportRequest(file, "hf-draft", tmp_path / "draft", str(directory))
    export_draft(request)
    with pytest.raises(UsageError, match="`force`"):
        export_draft(request)
    export_draft(ExportRequest(file, "nas", tmp_path / "draft", str(directory), force=True))
    assert json.loads((tmp_path / "draft" / MANIFEST).read_text())["format"] == "nas"
    assert not list(tmp_path.glob(".draft*"))


def test_what_users_put_beside_an_export_is_not_deleted(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = skip_file(directory, SkipSet(4, (1,), (1,)))
    request = ExportRequest(file, "hf-draft", tmp_path / "draft", str(directory), force=True)
    export_draft(request)
    (tmp_path / "draft" / "bench.json").write_text("{}")
    with pytest.raises(UsageError, match=r"files that no export wrote \(bench\.json\)"):
        export_draft(request)


def test_an_export_leads_to_no_code_of_the_checkpoints(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama_dir, copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    for format_ in ("hf-draft", "hf-zero"):
        out, _ = exported(format_, copied, SkipSet(4, (1,), (1,)), skip_file, tmp_path)
        assert "auto_map" not in json.loads((out / "config.json").read_text())
        out.rename(tmp_path / format_)


@pytest.mark.parametrize("format_", ["hf-draft", "hf-zero", "nas", "transformers-generate"])
def test_an_export_is_verified_in_transformers(
    format_: str, directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, manifest = exported(format_, directory, SkipSet(4, (1,), (1,)), skip_file, tmp_path)
    found = verify_export(out, manifest, num_prompts=2)
    assert found.verdict == "exact", found
    assert json.loads((out / MANIFEST).read_text())["verified"]["verdict"] == "exact"


def test_a_draft_that_computes_something_else_is_told(
    directory: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    out, manifest = exported("hf-draft", directory, SkipSet(4, (1,), (1,)), skip_file, tmp_path)
    wrong = manifest.model_copy(update={"skip": SkipLayers(attention=[2], mlp=[0])})
    assert verify_export(out, wrong, num_prompts=2).verdict == "different"


def test_skipping_nothing_is_refused(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SkipSetError, match="skips nothing"):
        exported("nas", directory, SkipSet.empty(4), skip_file, tmp_path)


def test_force_replaces_nothing_but_exports(directory: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    file = skip_file(directory, SkipSet(4, (1,), (1,)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no export of ours"):
        export_draft(ExportRequest(file, "nas", tmp_path / "mine", str(directory), force=True))
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="symbolic link"):
        export_draft(ExportRequest(file, "nas", tmp_path / "link", str(directory), force=True))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_another_model_than_the_searched_one_is_refused(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    from tests import kit

    file = skip_file(tiny_llama_dir, SkipSet(4, (1,), (1,)))
    other = kit.tiny_llama(tmp_path / "other", seed=5)
    with pytest.raises(SkipSetError, match="another model"):
        export_draft(ExportRequest(file, "hf-draft", tmp_path / "draft", str(other)))
    deeper = kit.tiny_llama(tmp_path / "deeper", layers=6)
    with pytest.raises(SkipSetError, match="has 6 layers"):
        export_draft(ExportRequest(file, "hf-draft", tmp_path / "draft", str(deeper)))


def test_pickled_weights_are_never_read(tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path) -> None:
    file = skip_file(tiny_llama_dir, SkipSet(4, (1,), (1,)))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((tiny_llama_dir / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileFormatError, match="pickled weights are never read"):
        export_draft(ExportRequest(file, "hf-draft", tmp_path / "draft", str(pickled)))


def test_everything_skipped_leaves_nothing_to_export(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    everything = SkipSet(4, (0, 1, 2, 3), (0, 1, 2, 3))
    with pytest.raises(SkipSetError, match="skips every sub-layer"):
        exported("nas", tiny_llama_dir, everything, skip_file, tmp_path)


def test_an_index_may_name_what_loaders_compute_anew(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    # As Llama-2's own files have it.
    source, sharded = Checkpoint(tiny_llama_dir), tmp_path / "sharded"
    sharded.mkdir()
    tensors = {name: source.read(name) for name in source.tensors}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_checkpoint(sharded, iter(tensors.items()), source.config, shard_bytes=100_000)
    for file in source.beside:
        (sharded / file.name).write_bytes(file.read_bytes())
    skip_set = WHOLE["one layer"]
    out, _ = exported("hf-draft", sharded, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(tiny_llama_dir, skip_set))
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.extra"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match=r"names tensors that no file holds \(model\.layers\.9\.extra\)"):
        Checkpoint(sharded)


def test_one_file_goes_before_an_index_that_was_left_behind(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama_dir, copied)
    (copied / INDEX).write_text(json.dumps({"weight_map": {"gone": "model-00001-of-00002.safetensors"}}))
    assert set(Checkpoint(copied).tensors) == set(Checkpoint(tiny_llama_dir).tensors)


def test_an_index_leads_to_no_file_outside(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama_dir, copied)
    (copied / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (copied / INDEX).write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(FileFormatError, match="a file outside its folder"):
        Checkpoint(copied)


def test_experts_that_files_name_otherwise_are_exported_too(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import Qwen2MoeConfig

    from tests import kit

    sizes = {"hidden_size": kit.HIDDEN, "intermediate_size": 64, "moe_intermediate_size": 32, "num_experts": 4}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    sizes |= {"shared_expert_intermediate_size": 32, "num_experts_per_tok": 2, "max_position_embeddings": 4096}
    directory = kit.save_random(Qwen2MoeConfig(**sizes, **heads, pad_token_id=0), tmp_path / "moe")
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in Checkpoint(directory).tensors
    skip_set = SkipSet(3, (1,), (1,))
    for format_ in ("hf-draft", "hf-zero", "transformers-generate"):
        out, manifest = exported(format_, directory, skip_set, skip_file, tmp_path)
        assert manifest.model_fingerprint == load_model(str(directory), dtype="float32", device="cpu").fingerprint
        assert verify_export(out, manifest, num_prompts=1).verdict == "exact"
        out.rename(tmp_path / format_)


@pytest.mark.parametrize("format_", ["hf-draft", "transformers-generate"])
def test_a_draft_goes_to_as_many_experts_as_in_its_search(
    format_: str, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import MixtralConfig

    from tests import kit

    sizes = {"hidden_size": kit.HIDDEN, "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 3}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    config = MixtralConfig(**sizes, **heads, max_position_embeddings=4096, pad_token_id=0)
    directory, skip_set = kit.save_random(config, tmp_path / "moe"), SkipSet(3, (1,), (1,))
    file, out = skip_file(directory, skip_set, experts=1), tmp_path / "draft"
    manifest = export_draft(ExportRequest(file, format_, out, str(directory)))
    assert manifest.settings["experts"] == 1
    assert not any("experts" in note for note in manifest.notes)
    assert verify_export(out, manifest, num_prompts=1).verdict == "exact"
    wrong = manifest.model_copy(update={"settings": {**manifest.settings, "experts": 3}})
    assert verify_export(out, wrong, num_prompts=1).verdict != "exact"
    zero = export_draft(ExportRequest(file, "hf-zero", tmp_path / "zero", str(directory)))
    assert any("Searched with 1 expert a token, which" in note for note in zero.notes)


def test_names_of_old_are_exported_as_they_are(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import GPT2Config

    from tests import kit

    # As GPT-2's own files have it: no prefix, and masks that nobody loads.
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(n_layer=3, n_embd=kit.HIDDEN, n_head=4, vocab_size=128, n_positions=64, **ends)
    source = Checkpoint(kit.save_random(config, tmp_path / "new"))
    old = tmp_path / "old"
    old.mkdir()
    tensors = {name.removeprefix("transformer."): source.read(name) for name in source.tensors}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(3)}
    write_checkpoint(old, iter(tensors.items()), source.config)
    for file in source.beside:
        shutil.copy(file, old)
    for format_, skip_set in (("hf-draft", SkipSet(3, (1,), (0,))), ("hf-zero", SkipSet(3, (1,), (2,)))):
        out, _ = exported(format_, old, skip_set, skip_file, tmp_path)
        assert torch.equal(logits_of(loaded_from(out)), expected(source.folder, skip_set))
        assert "h.1.attn.c_attn.weight" in Checkpoint(out).tensors
        out.rename(tmp_path / format_)


def test_a_list_that_is_as_long_as_the_model_is_deep_stays(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama_dir, copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3, 4, 5]}))
    out, _ = exported("hf-draft", copied, WHOLE["one layer"], skip_file, tmp_path)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 3, 4, 5]


def test_names_that_transformers_does_not_know_go_by_code_only(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    file, source, other = skip_file(tiny_llama_dir, SkipSet(4, (1,), (1,))), Checkpoint(tiny_llama_dir), tmp_path / "x"
    other.mkdir()
    tensors = ((name.replace("q_proj", "wq"), source.read(name)) for name in source.tensors)
    write_checkpoint(other, tensors, source.config)
    for file_beside in source.beside:
        shutil.copy(file_beside, other)
    with pytest.raises(UnsupportedModelError, match=r"under other names.*save it again.*`to` transformers-generate"):
        export_draft(ExportRequest(file, "hf-draft", tmp_path / "draft", str(other)))
    manifest = export_draft(ExportRequest(file, "transformers-generate", tmp_path / "draft", str(other)))
    assert any("could not be compared" in note for note in manifest.notes)


def test_kinds_of_layers_go_with_them(skip_file: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import GPTNeoConfig

    from tests import kit

    kinds = [[["global", "local"], 2]]
    sizes = {"hidden_size": kit.HIDDEN, "num_layers": 4, "num_heads": 4, "vocab_size": 128, "window_size": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    directory = kit.save_random(GPTNeoConfig(attention_types=kinds, **sizes, **ends), tmp_path / "neo")
    skip_set = SkipSet(4, (1,), (1,))
    out, _ = exported("hf-draft", directory, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))


def test_layers_that_are_what_they_are_by_their_place_are_refused(
    skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import ModernBertDecoderConfig

    from tests import kit

    # Its first layer has no norm before the attention.
    sizes = {"hidden_size": kit.HIDDEN, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertDecoderConfig(vocab_size=128, max_position_embeddings=64, **sizes, **ends)
    directory = kit.save_random(config, tmp_path / "modern")
    with pytest.raises(UnsupportedModelError, match=r"by their place.*attn_norm.*`to` hf-zero"):
        exported("hf-draft", directory, SkipSet(3, (0,), (0,)), skip_file, tmp_path)
    skip_set = SkipSet(3, (1,), (1,))
    out, _ = exported("hf-draft", directory, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))


def test_layers_whose_place_no_plan_tells_are_found_by_running_them(
    skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import DiffLlamaConfig

    from tests import kit

    sizes = {"hidden_size": kit.HIDDEN, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = DiffLlamaConfig(vocab_size=128, max_position_embeddings=64, pad_token_id=0, **sizes)
    directory = kit.save_random(config, tmp_path / "diff")
    with pytest.raises(UnsupportedModelError, match=r"by their place.*both differ.*`to` hf-zero"):
        exported("hf-draft", directory, SkipSet(3, (1,), (1,)), skip_file, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"cannot be taken apart.*two softmaxes.*`to` hf-zero"):
        exported("hf-draft", directory, SkipSet(3, (2,), (1,)), skip_file, tmp_path)
    skip_set = SkipSet(3, (2,), (2,))  # the others keep their places
    out, _ = exported("hf-draft", directory, skip_set, skip_file, tmp_path)
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))
    skip_set = SkipSet(3, (1,), (2,))
    out, _ = exported("hf-zero", directory, skip_set, skip_file, tmp_path / "zero")
    assert torch.equal(logits_of(loaded_from(out)), expected(directory, skip_set))


def test_a_model_by_code_of_its_own_is_refused(
    tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = skip_file(tiny_llama_dir, SkipSet(4, (1,), (1,)))
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama_dir, copied)
    config = json.loads((copied / "config.json").read_text())
    own = {"model_type": "somebodys", "auto_map": {"AutoConfig": "theirs.Config"}}
    (copied / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(UnsupportedModelError, match="by code that comes with it"):
        export_draft(ExportRequest(file, "hf-draft", tmp_path / "draft", str(copied)))


def test_lines_for_servers_name_no_gguf_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from tests import kit

    target, skips = kit.tiny_gguf(tiny_llama_dir, tmp_path / "model.gguf"), tmp_path / "skip_layers.json"
    skips.write_text('{"tiny": {"attention": [1], "mlp": [1]}}')
    manifest = export_draft(ExportRequest(skips, "nas", tmp_path / "draft", str(target)))
    assert not [line for line in manifest.launch.values() if "model.gguf" in line]
    assert any("CHECKPOINT in the lines stands for" in note for note in manifest.notes)

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from selfspec_tune import models
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.errors import FileFormatError, UnknownModelError, UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel, devices, load_model
from selfspec_tune.models import load as load_module
from tests import kit
from tests.families import FAMILIES


def load(path: Path | str) -> LoadedModel:
    return load_model(str(path), dtype="float32", device="cpu")


@pytest.fixture
def copy(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def edit_config(directory: Path, **settings: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_local_directory_is_loaded_for_inference(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.num_layers, loaded.context_length, loaded.eos_token_ids) == (4, 1024, (kit.EOS,))
    assert (loaded.dtype, loaded.device.type) == (torch.float32, "cpu")


def test_a_context_ends_where_rotary_positions_change(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**FAMILIES["phi3-long"].config)
    loaded = load(kit.save_random(config, tmp_path / "long"))
    assert (config.max_position_embeddings, loaded.context_length) == (1024, 700)
    assert any("change beyond 700 positions" in note for note in loaded.notes)


def test_the_description_is_plain_data(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir)
    description = json.loads(json.dumps(loaded.describe()))
    assert description == {
        "id": str(tiny_llama_dir),
        "name": str(tiny_llama_dir),
        "source": "local",
        "fingerprint": loaded.fingerprint,
        "num_layers": 4,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "parameters": loaded.model.num_parameters(),
        "provenance": "local directory",
    }


def test_a_local_model_keeps_the_path_as_it_was_given(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_llama_dir.parent)
    loaded = load(f"./{tiny_llama_dir.name}")
    assert loaded.name == f"./{tiny_llama_dir.name}"
    assert loaded.id == f"./{tiny_llama_dir.name}"


def test_the_asked_dtype_is_loaded(tiny_qwen2_dir: Path) -> None:
    assert load_model(str(tiny_qwen2_dir), dtype="bfloat16", device="cpu").dtype is torch.bfloat16


def _saved_in(directory: Path, dtype: torch.dtype) -> None:
    loaded = load(directory)
    loaded.model.to(dtype).save_pretrained(directory)


@pytest.mark.parametrize("is_stated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_on_a_cpu_keeps_the_checkpoint_s_own_dtype(copy: Path, dtype: torch.dtype, is_stated: bool) -> None:
    _saved_in(copy, dtype)
    if not is_stated:
        edit_config(copy, dtype=None)
    assert load_model(str(copy), device="cpu").dtype is dtype


def test_a_checkpoint_that_states_no_dtype_is_loaded_in_the_one_asked_for(copy: Path) -> None:
    edit_config(copy, dtype=None)
    loaded = load_model(str(copy), dtype="bfloat16", device="cpu")
    assert loaded.dtype is torch.bfloat16
    assert loaded.fingerprint == load(copy).fingerprint


def test_float16_becomes_what_the_processor_computes_in(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved_in(copy, torch.float16)
    for computes, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda computes=computes: computes)
        assert load_model(str(copy), device="cpu").dtype is expected


@pytest.mark.parametrize(
    ("model_type", "computes", "expected"),
    [("codegen", False, torch.float32), ("codegen", True, torch.bfloat16), ("llama", False, torch.bfloat16)],
)
def test_auto_runs_no_forward_of_transformers_on_imitated_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, computes: bool, expected: torch.dtype
) -> None:
    make = kit.tiny_llama if model_type == "llama" else lambda directory: kit.tiny_of_type(directory, model_type)
    _saved_in(make(tmp_path), torch.bfloat16)
    monkeypatch.setattr(load_module, "cpu_computes_bfloat16", lambda: computes)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.dtype is expected
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}
    assert loaded.fingerprint == load(tmp_path).fingerprint
    assert load_model(str(tmp_path), dtype="bfloat16", device="cpu").dtype is torch.bfloat16


def test_a_checkpoint_that_asks_for_tuples_is_decoded_all_the_same(copy: Path) -> None:
    edit_config(copy, return_dict=False)
    prefill(ReferenceRunner(load(copy)), [3, 4])


def test_several_end_tokens_are_all_kept(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 2, 9]}))
    assert load(copy).eos_token_ids == (2, 9)


def test_the_tokenizer_of_the_kit_reads_back_what_it_wrote(tiny_llama_dir: Path) -> None:
    tokenizer = load(tiny_llama_dir).tokenizer
    text = "def add(a, b):\n    return a + b"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_greedy_text_of_the_kit_varies(checkpoint: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(checkpoint))
    prompt = loaded.tokenizer("the rain in", return_tensors="pt")
    answer = loaded.model.generate(**prompt, max_new_tokens=32, do_sample=False, eos_token_id=None)
    assert len(set(answer[0].tolist())) > 12


def test_an_unknown_name_is_refused_with_close_ones() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean llama-2-13b"):
        load("lama-2-13b")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UnknownModelError, match=r"no directory or \.gguf file here"):
        load("./nowhere/model.gguf")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no config\.json"):
        load(tmp_path)


def test_a_directory_of_gguf_files_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").touch()
    with pytest.raises(UnknownModelError, match=r"Give the file itself: .*small\.gguf"):
        load(tmp_path)


def test_a_file_of_another_kind_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"expected a \.gguf file"):
        load(tiny_llama_dir / "config.json")


def test_torn_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="corrupt or incomplete"):
        load(copy)


def test_a_corrupt_config_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not valid JSON"):
        load(copy)


def test_missing_weights_are_refused_not_made_up(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=5)
    with pytest.raises(FileFormatError, match="lacks 9 of the model's weights"):
        load(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    edit_config(copy, vocab_size=129)
    with pytest.raises(FileFormatError, match="other shapes than its config"):
        load(copy)


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(FileFormatError, match="no tokenizer"):
        load(copy)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    edit_config(copy, model_type="nothing_like_it")
    with pytest.raises(UnsupportedModelError, match="What works"):
        load(copy)


def test_a_model_without_separable_sublayers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM"):
        load(kit.tiny_of_type(tmp_path, "mamba"))


def test_ministral_3_is_loaded_with_its_vision_tower_beside_it(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**FAMILIES["mistral3-ministral"].config)
    loaded = load_model(str(kit.save_random(config, tmp_path)))
    assert loaded.sublayers.names[0] == "model.language_model.layers.0.self_attn"
    assert unserved_reason(loaded.model, FastRunner.SERVES) is None


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    with pytest.raises(UsageError, match="`trust_remote_code`"):
        load(copy)


def test_pickled_weights_load_only_when_asked(copy: Path) -> None:
    torch.save(load(copy).model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="`allow_pickle`"):
        load(copy)
    assert load_model(str(copy), dtype="float32", device="cpu", allow_pickle=True).num_layers == 4


def test_the_package_exports_exactly_what_it_names() -> None:
    assert all(getattr(models, name) is not None for name in models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = models.nothing


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_configuration_in_another_encoding_says_how_to_save_it(copy: Path, encoding: str) -> None:
    path = copy / "config.json"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(
        FileFormatError, match=r"config\.json (begins with a byte-order mark|is UTF-16[BL]E, .* `iconv -f UTF-16[BL]E)"
    ):
        load(copy)

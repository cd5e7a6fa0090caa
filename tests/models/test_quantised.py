"""Checkpoints whose weights are quantised: run where transformers runs them, else refused with what they need."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec_tune.engine import choose_runner
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.models import load_model
from tests import kit

_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may compute in it")
BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
# By what a configuration says, the package that transformers imports, and what pip is to install.
NEEDED: dict[str, tuple[dict[str, Any], str, str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel", "optimum gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel", "gptqmodel"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        "compressed_tensors",
        "compressed-tensors",
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes",
        "bitsandbytes",
    ),
    "torchao": ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao", "torchao"),
}


@pytest.fixture
def copy(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may quantise."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def edit_config(directory: Path, **settings: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def add_tensors(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("method", NEEDED)
def test_without_its_library_a_quantised_checkpoint_says_what_it_needs(copy: Path, method: str) -> None:
    settings, module, packages = NEEDED[method]
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed here")
    edit_config(copy, quantization_config=settings)
    if method == "bitsandbytes":
        add_tensors(copy, {"model.layers.0.mlp.up_proj.weight.absmax": torch.ones(4)})
    with pytest.raises(UsageError, match=f"is quantised by {method}, and transformers cannot run it here") as refusal:
        load_model(str(copy), device="cpu")
    message = str(refusal.value)
    assert f"pip install {packages}." in message
    assert "the checkpoint that it was made from, or a GGUF file" in message
    assert "corrupt" not in message


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "exl2"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "modelopt"),
        ({"quantization_config": {"group_size": 64, "bits": 4}, "quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ({"quantization_config": {}}, "a method that it does not name"),
    ],
)
def test_what_transformers_cannot_read_is_refused_by_name(copy: Path, settings: dict[str, Any], method: str) -> None:
    edit_config(copy, **settings)
    with pytest.raises(UsageError, match=f"is quantised by {method}, which transformers does not read\\..* What else"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("method", "runs"),
    [
        ({"quantization_config": {"quant_method": "modelopt"}}, "TensorRT-LLM, vLLM or SGLang"),
        ({"quantization_config": {"quant_method": "exl3"}}, "ExLlamaV3"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx-lm"),
        ({"compression_config": {"format": "pack-quantized"}}, "vLLM"),
    ],
)
def test_what_runs_it_is_said_where_transformers_does_not(copy: Path, method: dict[str, Any], runs: str) -> None:
    edit_config(copy, **method)
    with pytest.raises(UsageError, match=f"which transformers does not read. What runs it: {runs}"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize("algorithm", ["NVFP4", "FP8"])
def test_what_stands_in_modelopt_s_own_file_counts(copy: Path, algorithm: str) -> None:
    (copy / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}})
    )
    with pytest.raises(UsageError, match=rf"quantised by modelopt {algorithm}, .* What runs it: TensorRT-LLM, vLLM"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: {"weight_packed": rows.to(torch.int32)},
        lambda rows: {"weight": rows[:, ::2].to(torch.uint8).contiguous(), "weight_scale_2": torch.ones(1)},
        lambda rows: {"qweight": rows.to(torch.int32)},
    ],
    ids=["compressed-tensors", "nvfp4", "gptq"],
)
def test_packed_weights_that_no_file_speaks_of_are_not_to_be_got_again(copy: Path, change: Any) -> None:
    file = copy / "model.safetensors"
    weights, owner = load_file(file), "model.layers.0.mlp.up_proj"
    changed = {f"{owner}.{leaf}": tensor for leaf, tensor in change(weights.pop(f"{owner}.weight")).items()}
    save_file(weights | changed, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=rf"are quantised, as its tensor {owner}\.\w+ shows") as refused:
        load_model(str(copy), device="cpu")
    assert "get them again" not in str(refused.value).lower()


@pytest.mark.parametrize("method", ["bitsandbytes", pytest.param("fp8", marks=_NO_GPU)])
def test_plain_weights_that_claim_more_are_loaded_as_they_are(copy: Path, method: str) -> None:
    plain = load_model(str(copy), dtype="float32", device="cpu")
    edit_config(copy, quantization_config={"quant_method": method})
    loaded = load_model(str(copy), dtype="float32", device="cpu")
    assert (loaded.fingerprint, loaded.provenance) == (plain.fingerprint, plain.provenance)
    assert f"asks for {method}, but its weights are plain numbers" in loaded.notes[0]
    assert not loaded.is_quantised


def test_torn_files_of_a_quantised_checkpoint_are_still_torn(copy: Path) -> None:
    edit_config(copy, quantization_config=BITNET)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="corrupt or incomplete"):
        load_model(str(copy), device="cpu")


def test_quantised_weights_run_on_the_reference_runner(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # its kernels would be compiled
    plain = load_model(str(copy), dtype="float32", device="cpu")
    edit_config(copy, quantization_config=BITNET)
    loaded = load_model(str(copy), dtype="float32", device="cpu")
    assert loaded.provenance == "local directory, quantised by bitnet"
    assert "quantised by bitnet: it runs as transformers runs it, on the reference runner" in loaded.notes[0]
    assert loaded.fingerprint != plain.fingerprint
    notices: list[str] = []
    assert choose_runner(loaded, "auto", notices.append).name == "reference"
    assert any("quantised" in notice for notice in notices)


def test_packed_weights_are_sub_layers_too(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    kit.pack_ternary(copy)
    loaded = load_model(str(copy), dtype="float32", device="cpu")
    assert loaded.sublayers.mlp[0].up_proj.weight.dtype is torch.uint8
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] ^= 3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(copy), dtype="float32", device="cpu").fingerprint != loaded.fingerprint


def test_the_same_weights_quantised_otherwise_are_another_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    edit_config(copy, quantization_config=BITNET)
    first = load_model(str(copy), dtype="float32", device="cpu")
    edit_config(
        copy, quantization_config=BITNET | {"use_rms_norm": False, "modules_to_not_convert": ["lm_head", "mlp"]}
    )
    assert load_model(str(copy), dtype="float32", device="cpu").fingerprint != first.fingerprint


def test_weights_that_load_and_cannot_compute_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr("selfspec_tune.models.load.try_out", missing)
    edit_config(copy, quantization_config=BITNET)
    with pytest.raises(UsageError, match=r"bitnet, and transformers cannot run it here: no kernel for this device\."):
        load_model(str(copy), device="cpu")


@_NO_GPU
def test_what_transformers_dequantises_is_an_ordinary_model_that_says_so(tmp_path: Path) -> None:
    directory = kit.tiny_llama(tmp_path / "fp8", tied=False)
    weights = load_file(directory / "model.safetensors")
    packed = {}
    for name, weight in weights.items():
        is_linear = name.endswith("_proj.weight")
        packed[name] = (weight * 64).to(torch.float8_e4m3fn) if is_linear else weight
        if is_linear:
            packed[f"{name}_scale_inv"] = torch.full((1, 1), 1 / 64)
            if weight.shape[0] > 128 or weight.shape[1] > 128:
                pytest.fail("one scale would not cover this weight")
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    loaded = load_model(str(directory), dtype="float32", device="cpu")
    assert loaded.provenance == "local directory, dequantised from fp8"
    assert "transformers dequantised it" in loaded.notes[0]
    weight = loaded.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(weight, weights["model.layers.0.self_attn.q_proj.weight"], atol=0.05, rtol=0.07)
    assert choose_runner(loaded, "fast", print).name == "fast"

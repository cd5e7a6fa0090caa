import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfspec_tune.models.loaded import fingerprint
from tests import kit


def of(directory: Path, dtype: torch.dtype = torch.float32) -> str:
    return fingerprint(AutoModelForCausalLM.from_pretrained(directory, dtype=dtype))


def test_a_fingerprint_is_sixteen_hexadecimal_digits(tiny_llama_dir: Path) -> None:
    digits = of(tiny_llama_dir)
    assert len(digits) == 16
    assert int(digits, 16) >= 0


def test_the_path_does_not_matter(tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert of(Path(shutil.copytree(tiny_llama_dir, tmp_path / "copy"))) == of(tiny_llama_dir)


def test_bfloat16_has_the_fingerprint_of_float32(tiny_llama_dir: Path) -> None:
    assert of(tiny_llama_dir, torch.bfloat16) == of(tiny_llama_dir)


def test_other_weights_have_another_fingerprint(tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert of(kit.tiny_llama(tmp_path, seed=1)) != of(tiny_llama_dir)


@pytest.mark.parametrize("setting", [{"rms_norm_eps": 1e-3}, {"hidden_act": "gelu"}])
def test_a_setting_that_changes_logits_changes_it(tiny_llama_dir: Path, setting: dict[str, object]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    before = fingerprint(model)
    model.config.update(setting)
    assert fingerprint(model) != before


@pytest.mark.parametrize("setting", [{"use_cache": False}, {"pad_token_id": 7}, {"transformers_version": "9"}])
def test_bookkeeping_does_not_change_it(tiny_llama_dir: Path, setting: dict[str, object]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    before = fingerprint(model)
    model.config.update(setting)
    assert fingerprint(model) == before


def test_views_of_a_fused_tensor_have_the_fingerprint_of_its_parts(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    before = fingerprint(model)
    mlp = model.model.layers[0].mlp
    fused = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = fused.chunk(2)
    assert fingerprint(model) == before

"""Launch lines hold a runtime to the decoding that was measured; forecasts go by its rule of acceptance."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.export.decoding import MeasuredSampling, forecast
from selfspec_tune.export.write import export_draft
from selfspec_tune.intervals import Interval
from selfspec_tune.requests import EXACT_MATCH, ExportRequest
from selfspec_tune.results import MANIFEST, Score, SkipConfig
from selfspec_tune.search.run import run_search
from tests import kit
from tests.export.gguf_kit import save_gguf
from tests.search_kit import Listener, hurry, prompt_file, search_request

WHOLE = SkipSet(4, (1,), (1,))
ASKED = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1, "min_p": 0.05}
SAMPLED = {"temperature": 0.6, "top_p": 0.9, "top_k": 30}


@pytest.fixture
def exported(tiny_llama_dir: Path, skip_file: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The manifest of an export of a checkpoint that asks for much, measured with these options."""
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "asking"))
    (model / "generation_config.json").write_text(json.dumps(ASKED))

    def export(format_: str, *, searched: bool = True, **options: Any) -> dict[str, Any]:
        source = skip_file(model, WHOLE)
        if searched:
            prompts = {"source": "builtin", **options}
            SkipConfig.load(source).model_copy(update={"provenance": {"prompts": prompts}}).save(source)
        else:
            source = tmp_path / "theirs.json"
            source.write_text(json.dumps({"tiny": WHOLE.to_dict()}))
            source = Path(f"{source}#tiny")
        gguf = save_gguf(model, tmp_path / "t.gguf") if format_ == "gguf" else None
        request = ExportRequest(source, format_, tmp_path / "draft", str(model), gguf, force=True)
        export_draft(request)
        manifest: dict[str, Any] = json.loads((tmp_path / "draft" / MANIFEST).read_text())
        return manifest

    return export


def option(line: str, name: str) -> str:
    words = shlex.split(line)
    return words[words.index(name) + 1]


@pytest.mark.parametrize("searched", [True, False])
def test_what_was_measured_greedily_is_served_greedily(exported: Callable[..., Any], searched: bool) -> None:
    manifest = exported("nas", searched=searched)
    lines = manifest["launch"]
    assert option(lines["vllm"], "--generation-config") == "vllm"
    assert json.loads(option(lines["vllm"], "--override-generation-config")) == {"temperature": 0.0}
    assert json.loads(option(lines["vllm"], "--speculative-config"))["method"] == "draft_model"
    assert option(lines["sglang"], "--sampling-defaults") == "openai"
    assert option(lines["mlx"], "--temp") == "0"
    assert "do_sample=False, min_p=0.0, repetition_penalty=1.0)" in lines["transformers"]
    assert manifest["sampling"] == {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    assert manifest["generation_config"] == ASKED
    assert any("asks for do_sample True, temperature 0.7, top_k 20" in note for note in manifest["notes"])
    assert any("unless a request states its own: send temperature 0." in note for note in manifest["notes"])


def test_what_was_sampled_is_served_with_the_same_settings(exported: Callable[..., Any]) -> None:
    manifest = exported("nas", **SAMPLED)
    lines = manifest["launch"]
    assert json.loads(option(lines["vllm"], "--override-generation-config")) == SAMPLED
    assert "--temp 0.6 --top-p 0.9 --top-k 30" in lines["mlx"]
    assert "do_sample=True, temperature=0.6, top_p=0.9, top_k=30, min_p=0.0" in lines["transformers"]
    assert any("send temperature 0.6, top_p 0.9 and top_k 30" in note for note in manifest["notes"])


def test_what_was_measured_beyond_that_is_served_too(exported: Callable[..., Any]) -> None:
    more = {**SAMPLED, "min_p": 0.1, "repetition_penalty": 1.2}
    manifest = exported("nas", **more)
    lines = manifest["launch"]
    assert manifest["sampling"] == more
    assert json.loads(option(lines["vllm"], "--override-generation-config")) == more
    assert "--temp 0.6 --top-p 0.9 --top-k 30 --min-p 0.1" in lines["mlx"]
    asked = "do_sample=True, temperature=0.6, top_p=0.9, top_k=30, min_p=0.1, repetition_penalty=1.2)"
    assert lines["transformers"].endswith(asked)
    stated = "send temperature 0.6, top_p 0.9, top_k 30, min_p 0.1 and repetition_penalty 1.2"
    assert any(stated in note for note in manifest["notes"])
    assert any("MLX-LM" in note and note.endswith("send repetition_penalty 1.2.") for note in manifest["notes"])
    line = exported("gguf", **more)["launch"]["llama.cpp"]
    assert line.endswith("--temp 0.6 --top-p 0.9 --top-k 30 --min-p 0.1 --repeat-penalty 1.2")
    greedy = exported("gguf", repetition_penalty=1.2)["launch"]["llama.cpp"]
    assert greedy.endswith("--temp 0 --repeat-penalty 1.2")


@pytest.mark.parametrize("format_", ["hf-draft", "hf-zero", "transformers-generate"])
def test_transformers_lines_turn_off_what_was_not_measured(exported: Callable[..., Any], format_: str) -> None:
    line = exported(format_)["launch"]["transformers"]
    assert line.endswith("do_sample=False, min_p=0.0, repetition_penalty=1.0)")


def test_llama_cpp_is_held_to_it_too(exported: Callable[..., Any]) -> None:
    assert exported("gguf")["launch"]["llama.cpp"].endswith("--temp 0 --repeat-penalty 1")
    line = exported("gguf", **SAMPLED)["launch"]["llama.cpp"]
    assert line.endswith("--temp 0.6 --top-p 0.9 --top-k 30 --min-p 0 --repeat-penalty 1")


def test_a_line_of_transformers_decodes_as_measured(exported: Callable[..., Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from selfspec_tune.engine import Limits, Sampler, autoregressive
    from selfspec_tune.engine.runners.reference import ReferenceRunner
    from tests.engine_kit import load, prompt_tokens

    line = exported("transformers-generate")["launch"]["transformers"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "asking", dtype=torch.float32)
    inputs = {"input_ids": torch.tensor([prompt_tokens(9)]), "max_new_tokens": 12}
    answer = eval(line, {"model": model, "inputs": inputs})[0, 9:].tolist()
    loaded = load(tmp_path / "asking")
    limits = Limits(12, frozenset(loaded.eos_token_ids))
    assert answer == autoregressive(ReferenceRunner(loaded), prompt_tokens(9), limits, Sampler()).tokens


@pytest.mark.parametrize("prompts", [{"temperature": float("nan")}, {"temperature": "hot"}, {"top_p": 7}])
def test_a_file_whose_settings_mean_nothing_is_refused(exported: Callable[..., Any], prompts: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected|should be"):
        exported("hf-draft", **prompts)


def test_a_file_without_any_means_greedy() -> None:
    assert MeasuredSampling.measured(None, {}).recorded == {"temperature": 0.0, "top_p": 1.0, "top_k": 0}


# -- the rule by which tokens are accepted -----------------------------------------------------------------------


def standalone(skip_file: Callable[..., Path], directory: Path, **provenance: Any) -> SkipConfig:
    config = SkipConfig.load(skip_file(directory, WHOLE))
    speedup = Interval(1.2, 1.1, 1.3)
    score = Score(verdict="faster", decode_speedup=speedup, acceptance_rate=0.7, num_prompts=32)
    return config.model_copy(update={"objective": "standalone", "score": score, "provenance": provenance})


def test_a_forecast_says_by_which_rule_it_counts(skip_file: Callable[..., Path], tiny_llama_dir: Path) -> None:
    sampled = {"prompts": {"temperature": 0.7}}
    greedy = forecast(standalone(skip_file, tiny_llama_dir, prompts={"temperature": 0.0})).text
    ours = forecast(standalone(skip_file, tiny_llama_dir, **sampled, search={"acceptance": EXACT_MATCH})).text
    older = forecast(standalone(skip_file, tiny_llama_dir, **sampled)).text
    assert "At temperature" not in greedy
    assert "At temperature 0.7 a token counts as accepted where the target draws the draft's most probable one" in ours
    assert "accepted by the ratio of both probabilities" in older
    assert "accept fewer" in older


def test_a_forecast_carries_the_share_of_degenerate_answers(
    skip_file: Callable[..., Path], tiny_llama_dir: Path
) -> None:
    config = standalone(skip_file, tiny_llama_dir)
    score = config.score.model_copy(update={"degenerate_share": 0.25})
    assert (
        "on 32 test prompts (25% of the answers degenerate)."
        in forecast(config.model_copy(update={"score": score})).text
    )
    assert "egenerate" not in forecast(config).text


def test_a_standalone_search_that_samples_measures_by_the_servers_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    model, out = kit.tiny_llama(tmp_path / "model"), tmp_path / "study"
    source = prompt_file(tmp_path / "p.jsonl")
    run_search(
        search_request(out, model, source, trials=1, objective="standalone", policy="auto", temperature=0.8), Listener()
    )
    config = SkipConfig.load(out / "skip.json")
    assert config.provenance["search"]["acceptance"] == EXACT_MATCH
    assert "draws the draft's most probable one" in forecast(config).text
    shared = tmp_path / "shared"
    run_search(search_request(shared, model, source, trials=1, temperature=0.8), Listener())
    search = SkipConfig.load(shared / "skip.json").provenance["search"]
    assert "acceptance" not in search
    assert search["standalone"]["acceptance"] == EXACT_MATCH

"""From a study, a file or a name to a model that answers: nothing of what was found is lost on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import selfspec_tune as st
from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SelfSpecError, SkipSetError, UsageError
from selfspec_tune.models import load_model
from selfspec_tune.results import DraftSettings, ModelInfo, SkipConfig, SkipLayers
from tests import kit
from tests.results_kit import skip_config
from tests.search_kit import hurry, prompt_file

FOUND = Draft(
    SkipSet(4, (1,), (2,)),
    DraftPolicy(PolicyKind.COST_AWARE, 5, credit=2.0),
    DraftPrecision.parse("int8 attn 0,2 · mlp 3; head int8", 4),
    vocabulary=64,
    sources=(NgramLookup(3, 1, 7, 2),),
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny_llama(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture(scope="module")
def info(model_dir: Path) -> ModelInfo:
    return ModelInfo.model_validate(load_model(str(model_dir), dtype="float32", device="cpu").describe())


def write(info: ModelInfo, draft: Draft = FOUND, file: str = "study/skip.json", **fields: Any) -> Path:
    config = skip_config(
        model=info,
        skip=SkipLayers.model_validate(draft.skip_set.to_dict()),
        draft=DraftSettings.model_validate(draft.to_dict()),
        **fields,
    )
    config.save(file)
    return Path(file)


def said_by(load: Callable[..., st.Model], *arguments: Any, **options: Any) -> tuple[st.Model, str]:
    notices: list[str] = []
    model = load(*arguments, notice=notices.append, **options)
    assert model.notes == tuple(notices)
    return model, "\n".join(notices)


# -- what is used ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["study", "study/skip.json", Path("study")])
def test_everything_that_a_search_found_is_used(info: ModelInfo, source: Any) -> None:
    write(info)
    model, said = said_by(st.load, source, runner="fast")
    assert model.draft == FOUND
    assert (model.name, model.runner) == (info.id, "fast")
    assert model.costs is not None
    assert "steps are timed here" in said
    assert model._runner._copies.num_bytes > 0  # type: ignore[attr-defined]
    answer = model.generate("the sun and the sun and the sun", max_new_tokens=24)
    plain = model.plainly("the sun and the sun and the sun", max_new_tokens=24)
    assert (answer.text, plain.drafted) == (plain.text, 0)


def test_options_change_the_draft_as_they_do_in_a_bench(info: ModelInfo) -> None:
    write(info)
    options: dict[str, Any] = {"policy": "threshold", "max_draft_tokens": 3, "exit_threshold": 0.5, "ngram": False}
    model = st.load("study", precision="same", **options)
    policy = replace(FOUND.policy, kind=PolicyKind.THRESHOLD, max_draft_tokens=3, exit_threshold=0.5)
    assert model.draft == replace(FOUND, policy=policy, sources=(), precision=DraftPrecision())
    assert model.costs is None


def test_another_projects_file_and_a_text_are_read_with_their_model(model_dir: Path) -> None:
    Path("swift.json").write_text('{"tiny-1b_code": {"attention": [1], "mlp": [2]}}')
    for source in ("swift.json", "swift.json#tiny-1b_code", "attn 1 · mlp 2"):
        model = st.load(source, model=str(model_dir), runner="fast")
        assert model.draft == Draft(SkipSet(4, (1,), (2,)))


def test_a_models_name_alone_looks_tokens_up_and_says_so(model_dir: Path) -> None:
    model, said = said_by(st.load, str(model_dir), runner="fast")
    assert model.draft is not None
    assert (model.draft.sources, model.draft.model_drafts) == ((NgramLookup().alone,), False)
    assert model.draft.policy.kind is PolicyKind.COST_AWARE
    assert "used without a study: tokens that occurred before are looked up" in said
    assert st.load(model=str(model_dir), runner="fast").draft == model.draft
    plain, said = said_by(st.load, str(model_dir), runner="fast", ngram=False)
    assert plain.draft is None
    assert "every token is decoded plainly" in said
    copies = st.load(str(model_dir), runner="fast", precision="int8", policy="fixed")
    assert copies.draft is not None
    assert copies.draft.sublayers == (Precision.INT8,) * 8


def test_a_gguf_file_is_a_model(model_dir: Path, tmp_path: Path) -> None:
    assert st.load(kit.tiny_gguf(model_dir, tmp_path / "tiny.gguf"), runner="fast").draft is not None


def test_with_nothing_given_the_newest_study_is_loaded(info: ModelInfo) -> None:
    write(info, file="studies/one/skip.json")
    assert st.load(runner="fast").draft == FOUND


def test_what_is_not_as_measured_is_said(info: ModelInfo) -> None:
    score = skip_config().score.model_copy(update={"verdict": "not_faster"})
    assert "not found faster than plain decoding (not_faster)" in said_by(st.load, write(info, score=score))[1]
    stopped = write(info, provenance={"interrupted": True})
    assert "best draft of a search that was stopped" in said_by(st.load, stopped)[1]
    assert "shares the model's" in said_by(st.load, write(info, objective="standalone"))[1]


# -- costs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose draft is cost-aware, finished here."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        st.search(
            str(model_dir),
            prompts=prompt_file(folder / "prompts.jsonl"),
            out=folder / "study",
            trials=1,
            num_prompts=16,
            max_new_tokens=16,
            policy="cost-aware",
            dtype="float32",
            device="cpu",
        )
    return folder / "study"


def costs_of(study: Path) -> CostModel:
    return CostModel.from_dict(json.loads((study / "ranking.json").read_text())["cost_model_seconds"])


def test_step_times_are_the_studys_where_it_measured_here(study: Path) -> None:
    model, said = said_by(st.load, study)
    assert model.draft is not None
    assert model.costs == costs_of(study).steps(model.draft)
    assert "timed" not in said


def test_step_times_are_measured_anew_on_another_machine_and_it_is_said(study: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(study, tmp_path / "copied"))
    value = json.loads((copied / "skip.json").read_text())
    value["provenance"]["hardware"]["cpu"] = "Another CPU"
    (copied / "skip.json").write_text(json.dumps(value))
    model, said = said_by(st.load, copied)
    assert "the study measured elsewhere (cpu was Another CPU, is" in said
    assert model.draft is not None
    assert model.costs != costs_of(study).steps(model.draft)


def test_a_changed_tokenizer_is_told(study: Path, model_dir: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(model_dir, tmp_path / "copied"))
    kit.tiny_tokenizer(120).save_pretrained(copied)
    assert "another tokenizer than when it was searched" in said_by(st.load, study, model=str(copied))[1]


# -- bad inputs -----------------------------------------------------------------------------------------------------


def test_a_skip_file_of_another_model_is_refused(info: ModelInfo, tmp_path: Path) -> None:
    deeper = kit.tiny_llama(tmp_path / "deeper", layers=6)
    with pytest.raises(SkipSetError, match=r"is for .* with 4 layers; .*deeper has 6"):
        st.load(write(info), model=str(deeper))
    other = kit.tiny_llama(tmp_path / "other", seed=9)
    with pytest.raises(SkipSetError, match=r"is another model \(fingerprint"):
        st.load(write(info), model=str(other))


def test_a_model_that_changed_since_the_study_is_refused(model_dir: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(model_dir, tmp_path / "model"))
    before = ModelInfo.model_validate(load_model("model", dtype="float32", device="cpu").describe())
    write(before)
    weights = load_file(changed / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: weights[name] + 1.0}, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(SkipSetError, match="is another model"):
        st.load("study")
    shutil.rmtree(changed)
    with pytest.raises(SelfSpecError, match="model"):
        st.load("study")


def test_a_study_that_never_finished_is_refused(tmp_path: Path) -> None:
    Path("study").mkdir()
    Path("study/study.toml").write_text("")
    with pytest.raises(FileFormatError, match="study holds a search that has come to no result yet"):
        st.load("study")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.json", {}, "nowhere.json does not exist"),
        ("attn 1", {}, "Unknown model 'attn 1'"),
        ("study", {"policy": "quick"}, "`policy` 'quick': expected one of"),
        ("study", {"template": "plain"}, "`template` 'plain': expected one of"),
        ("study", {"exit_threshold": 0.5}, "the cost-aware policy has no threshold"),
        ("study", {"max_draft_tokens": 0}, "max_draft_tokens"),
        ("study", {"precision": "int3"}, "int3"),
        ("study", {"runner": "slow"}, "`runner` slow"),
        (None, {}, "no skip.json under studies"),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    info: ModelInfo, source: str | None, options: dict[str, Any], message: str
) -> None:
    write(info)
    with pytest.raises(UsageError, match=message):
        st.load(source, **options)


# -- the functions ----------------------------------------------------------------------------------------------------


def test_the_snippet_of_the_readme(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    target = kit.tiny_gguf(model_dir, tmp_path / "tiny.gguf")  # which an export to GGUF is made from
    prompts = prompt_file(tmp_path / "prompts.jsonl", 24)
    small: dict[str, Any] = {"num_prompts": 12, "max_new_tokens": 12, "dtype": "float32", "device": "cpu"}
    result = st.search(str(target), prompts=prompts, timeout="10m", trials=1, out="studies/mine", **small)
    assert isinstance(result.skip_config, SkipConfig)
    again = st.search(str(target), prompts=prompts, timeout="10m", trials=1, out="studies/mine", **small)
    assert again.skip_config == result.skip_config  # read, not searched: the name still calls

    model = st.load(result)
    assert model.draft == st.load("studies/mine").draft
    assert isinstance(model.generate("Write a haiku about rain.", max_new_tokens=16).text, str)
    stream = model.stream("And then?", temperature=0.7, stop=["\n\n"], max_new_tokens=16)
    assert "".join(piece.text for piece in stream) == stream.generation.text
    assert len(model.generate(["one", "two"], max_new_tokens=4)) == 2

    rivals = st.bench(result, rivals=True, num_prompts=2, reference_prompts=1, max_new_tokens=4)
    assert {method.name for method in rivals.methods} >= {"self-speculative", "autoregressive", "hf-generate"}
    wide = st.search(str(target), prompts=prompts, trials=1, out="studies/wide", objective="standalone", **small)
    manifest = st.export(wide, "gguf", out="draft")
    assert (manifest["format"], Path("draft/draft.gguf").exists()) == ("gguf", True)
    assert "attention" in json.dumps(st.export(result, "self-sd", out="self-sd.json"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("study", "gguff"), {}, "'gguff' is no format"),
        (("study", "hf-draft"), {}, "makes a folder: name it with out"),
        (("study", "self-sd"), {"weights": "f16"}, "writes a file of skips alone, so weights means nothing"),
        (("study", "self-sd"), {"out": "study/skip.json"}, "is there already"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    info: ModelInfo, arguments: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    write(info)
    with pytest.raises(UsageError, match=message):
        st.export(*arguments, **options)

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfspec_tune.bench.run import choose_prompts
from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind
from selfspec_tune.draft.dialects import DIALECTS, to_dialect
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, PromptError, SkipSetError, UsageError
from selfspec_tune.measure.contenders import (
    Contender,
    check_same_model,
    gather,
    model_options,
    newest_study,
    overridden,
    prompt_options,
)
from selfspec_tune.prompts import Splits, default_split_sizes, load_prompts, split_prompts
from selfspec_tune.requests import BenchRequest, ModelOptions, PromptOptions
from selfspec_tune.results import SkipConfig
from tests.results_kit import MODEL, SKIP, save_study, skip_config
from tests.search_kit import prompt_file


def loaded_model(**fields: Any) -> Any:
    """What `check_same_model` and `Contender.draft` look at of a model."""
    values = {"name": "tiny", "num_layers": MODEL.num_layers, "fingerprint": MODEL.fingerprint}
    return SimpleNamespace(**(values | fields))


def set_age(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


# Which skip sets


def test_with_nothing_given_the_newest_study_is_measured(tmp_path: Path) -> None:
    old, new = save_study(tmp_path / "studies" / "old"), save_study(tmp_path / "studies" / "deep" / "new")
    set_age(old / "skip.json", 100)
    (source,) = gather(BenchRequest(studies=tmp_path / "studies"))
    assert source.label == str(new / "skip.json")
    assert source.config == skip_config()
    set_age(new / "skip.json", 1000)
    assert newest_study(tmp_path / "studies") == old / "skip.json"


def test_without_any_study_the_message_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        gather(BenchRequest(studies=tmp_path / "studies"))
    message = str(caught.value)
    assert f"There is no skip.json under {tmp_path}/studies/" in message
    assert "`skip_sets` with `model`" in message
    assert "search first" in message


def test_files_come_before_texts_and_the_newest_study_is_left_alone(tmp_path: Path) -> None:
    save_study(tmp_path / "studies" / "newest")
    given = save_study(tmp_path / "given") / "skip.json"
    request = BenchRequest(skip_files=(given,), skip_sets=("attn 1", "none"), studies=tmp_path / "studies")
    assert [source.label for source in gather(request)] == [str(given), "attn 1", "none"]


def test_a_studys_folder_stands_for_its_skip_file(tmp_path: Path) -> None:
    folder = save_study(tmp_path / "study")
    (source,) = gather(BenchRequest(skip_files=(folder,)))
    assert source.config == skip_config()


def test_a_skip_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"gone\.json does not exist"):
        gather(BenchRequest(skip_files=(tmp_path / "gone.json",)))
    with pytest.raises(FileFormatError, match=r"skip\.json does not exist"):
        gather(BenchRequest(skip_files=(tmp_path,)))


def test_a_corrupt_skip_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "skip.json"
    file.write_text('{"schema": "selfspec-tune/skip-')
    with pytest.raises(FileFormatError, match=r"skip\.json is not valid JSON"):
        gather(BenchRequest(skip_files=(file,)))


def test_a_skip_file_that_lacks_a_part_says_which(tmp_path: Path) -> None:
    file = tmp_path / "skip.json"
    value = skip_config().to_dict()
    del value["draft"]
    file.write_text(json.dumps(value))
    with pytest.raises(FileFormatError, match="draft"):
        gather(BenchRequest(skip_files=(file,)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_in_any_dialect_is_read_once_the_model_is_known(tmp_path: Path, dialect: str) -> None:
    skip_set = SkipSet(12, (10, 11), (10, 11))
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(to_dialect(skip_set, dialect, model_name="tiny-1b", task="code")))
    (source,) = gather(BenchRequest(skip_files=(file,)))
    assert source.config is None
    assert source.draft(loaded_model(), None) == Draft(skip_set)


def test_one_entry_of_a_file_is_named_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "several.json"
    file.write_text(json.dumps({"a-1b_x": {"attention": [1], "mlp": []}, "a-1b_y": {"attention": [], "mlp": [2]}}))
    (source,) = gather(BenchRequest(skip_files=(Path(f"{file}#a-1b_y"),)))
    assert source.draft(loaded_model(), None).skip_set == SkipSet(12, (), (2,))
    (unnamed,) = gather(BenchRequest(skip_files=(file,)))
    with pytest.raises(SkipSetError, match="holds 2 skip sets"):
        unnamed.draft(loaded_model(), None)


def test_a_file_with_economizes_call_is_read_like_any_dialect(tmp_path: Path) -> None:
    file = tmp_path / "economize.txt"
    file.write_text("model.generate(skip_layers=(11, 12))\n")
    (source,) = gather(BenchRequest(skip_files=(file,)))
    assert source.draft(loaded_model(), None).skip_set == SkipSet(12, (10, 11), (10, 11))


def test_our_own_file_given_as_a_skip_set_keeps_its_prompts_and_policy(tmp_path: Path) -> None:
    file = save_study(tmp_path / "study") / "skip.json"
    (source,) = gather(BenchRequest(skip_sets=(str(file),)))
    assert source.config is not None
    assert source.config.prompt_hashes("calibration")


def test_another_skip_set_takes_the_first_ones_policy() -> None:
    policy = DraftPolicy(PolicyKind.ADAPTIVE, 9, 0.3)
    default = Draft(SKIP, policy, vocabulary=500)
    draft = Contender("attn 1", text="attn 1").draft(loaded_model(), default)
    assert draft == replace(default, skip_set=SkipSet(12, (1,)))
    assert Contender("none", text="none").draft(loaded_model(), None) == Draft(SkipSet.empty(12))


def test_our_own_file_brings_its_policy_and_vocabulary() -> None:
    settings = skip_config().draft.model_copy(update={"max_draft_tokens": 8, "vocabulary": 900})
    source = Contender("skip.json", config=skip_config(draft=settings))
    draft = source.draft(loaded_model(), None)
    assert draft == Draft(SKIP, DraftPolicy(PolicyKind.THRESHOLD, 8, 0.6), vocabulary=900)


def test_a_request_overrides_policy_lookup_and_precision() -> None:
    draft = Draft(SKIP, DraftPolicy(PolicyKind.THRESHOLD, 9, 0.3), sources=(NgramLookup(5, 1, 7),))

    def request(**options: object) -> BenchRequest:
        return BenchRequest(draft_overrides=tuple(options.items()))

    assert overridden(draft, request()) == draft
    assert overridden(draft, request(policy="cost-aware")).policy == DraftPolicy(PolicyKind.COST_AWARE, 9, 0.3)
    assert overridden(draft, request(ngram=False)).sources == ()
    assert overridden(draft, request(ngram=True)) == draft  # its own lookup, not the default one
    assert overridden(replace(draft, sources=()), request(ngram=True)).sources == (NgramLookup(),)
    precise = overridden(draft, request(precision="int4 mlp 11"))
    assert precise.precision == DraftPrecision.parse("int4 mlp 11", 12)


def test_a_precision_for_layers_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="12 layers"):
        overridden(Draft(SKIP), BenchRequest(draft_overrides=(("precision", "int4 attn 12"),)))


def test_a_lookup_alone_cannot_do_without_its_lookup() -> None:
    alone = Draft(SKIP, sources=(NgramLookup(),), model_drafts=False)
    with pytest.raises(UsageError, match="neither a lookup nor the model"):
        overridden(alone, BenchRequest(draft_overrides=(("ngram", False),)))


def test_a_text_with_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(SkipSetError, match="layer 12 is out of range; the model has 12 layers"):
        Contender("attn 3,12", text="attn 3,12").draft(loaded_model(), None)


# Which model


def test_the_model_is_the_first_files_with_its_dtype() -> None:
    configs = [skip_config(), skip_config(model=MODEL.model_copy(update={"id": "org/Other", "dtype": "bfloat16"}))]
    assert model_options(BenchRequest(), configs) == ModelOptions("org/Tiny-12L", dtype="float32")


def test_overrides_replace_single_fields_of_the_model() -> None:
    request = BenchRequest(model_overrides=(("device", "cuda:1"), ("runner", "reference")))
    options = model_options(request, [skip_config()])
    assert options == ModelOptions("org/Tiny-12L", dtype="float32", device="cuda:1", runner="reference")
    alone = BenchRequest(model_overrides=(("name", "mine"),))
    assert model_options(alone, []) == ModelOptions("mine")
    assert model_options(alone, [skip_config()]).name == "mine"


def test_a_skip_set_that_names_no_model_needs_one() -> None:
    with pytest.raises(UsageError, match=r"does not say which model it is for. Add `model`"):
        model_options(BenchRequest(skip_sets=("attn 1",)), [])


def test_a_file_for_its_own_model_passes() -> None:
    check_same_model(skip_config(), loaded_model(), "skip.json")


def test_a_file_for_a_model_of_another_depth_is_refused() -> None:
    with pytest.raises(SkipSetError) as caught:
        check_same_model(skip_config(), loaded_model(name="other", num_layers=30), "here/skip.json")
    message = str(caught.value)
    assert "here/skip.json is for org/Tiny-12L with 12 layers; other has 30" in message
    assert caught.value.exit_code == 2


def test_a_file_for_another_model_of_the_same_depth_is_refused_with_a_way_out() -> None:
    with pytest.raises(SkipSetError) as caught:
        check_same_model(skip_config(), loaded_model(name="other", fingerprint="1234"), "skip.json")
    message = str(caught.value)
    assert "fingerprint 00ff00ff00ff00ff" in message
    assert "other is another model (fingerprint 1234)" in message
    assert f"`skip_sets` '{SKIP}'" in message
    assert SkipSet.parse(str(SKIP), 12) == SKIP


# Which prompts


def study_options(source: str, **fields: Any) -> PromptOptions:
    return PromptOptions(source=source, num_prompts=16, max_new_tokens=24, **fields)


def study_config(source: str, seed: int = 0) -> tuple[SkipConfig, Splits]:
    """A skip.json whose search drew 16 prompts of ``source``, and its splits."""
    options = study_options(source, seed=seed)
    prompts = load_prompts(source, num_prompts=16, seed=seed)
    calibration, selection, test = default_split_sizes(16)
    splits = split_prompts(prompts, seed=seed, calibration=calibration, selection=selection, test=test)
    recorded = {"source": source, "num_prompts": 16, "max_new_tokens": 24, "seed": options.seed, **splits.hashes()}
    return skip_config(provenance={"prompts": recorded}), splits


def choose(config: SkipConfig, **fields: Any) -> tuple[set[str], bool]:
    """Hashes of the prompts chosen for a bench of ``config``; keywords are the user's overrides."""
    allow = bool(fields.pop("allow_calibration", False))
    request = BenchRequest(prompt_overrides=tuple(fields.items()), allow_calibration=allow)
    prompts, in_sample = choose_prompts(request, prompt_options(request, [config]), [config])
    assert len(prompts) == len({prompt.hash for prompt in prompts})
    return {prompt.hash for prompt in prompts}, in_sample


@pytest.fixture
def source(tmp_path: Path) -> str:
    return prompt_file(tmp_path / "set.jsonl", 24)


def test_prompt_options_are_the_studys_with_the_users_on_top(source: str) -> None:
    config, _ = study_config(source, seed=5)
    assert prompt_options(BenchRequest(), [config]) == study_options(source, seed=5)
    request = BenchRequest(prompt_overrides=(("max_new_tokens", 200), ("temperature", 0.7)))
    assert prompt_options(request, [config]) == replace(
        study_options(source, seed=5), max_new_tokens=200, temperature=0.7
    )
    assert prompt_options(BenchRequest(), []) == PromptOptions()


@pytest.mark.parametrize("seed", [0, 3])
def test_a_studys_own_options_give_exactly_its_test_split(source: str, seed: int) -> None:
    config, splits = study_config(source, seed)
    assert choose(config) == ({prompt.hash for prompt in splits.test}, False)


def test_a_number_of_prompts_draws_unread_ones_from_the_whole_source(source: str) -> None:
    config, splits = study_config(source)
    read = {prompt.hash for prompt in (*splits.calibration, *splits.selection)}
    for wanted in (1, 8, 16):
        chosen, in_sample = choose(config, num_prompts=wanted)
        assert len(chosen) == wanted
        assert not chosen & read
        assert not in_sample


def test_too_few_unread_prompts_are_an_error_of_the_request(source: str) -> None:
    config, _ = study_config(source)
    with pytest.raises(PromptError) as caught:
        choose(config, num_prompts=17)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "has 16 prompts that the search did not read; 17 were asked for" in message
    for way_out in ("`num_prompts`", "`prompts`", "`allow_calibration`"):
        assert way_out in message


def test_a_study_that_read_everything_leaves_nothing_to_bench_on(source: str) -> None:
    config, splits = study_config(source)
    hashes = [prompt.hash for prompt in (*splits.calibration, *splits.selection, *splits.test)]
    recorded = {**config.provenance["prompts"], "calibration": hashes}
    with pytest.raises(PromptError, match="0 prompts that the search did not read"):
        choose(skip_config(provenance={"prompts": recorded}))


def test_allowing_calibration_prompts_marks_the_result_in_sample(source: str) -> None:
    config, splits = study_config(source)
    chosen, in_sample = choose(config, allow_calibration=True)
    assert in_sample
    assert chosen == {prompt.hash for prompt in (*splits.calibration, *splits.selection, *splits.test)}
    assert choose(config, allow_calibration=True, num_prompts=24)[1]


def test_allowing_calibration_prompts_of_another_source_is_not_in_sample(source: str, tmp_path: Path) -> None:
    config, _ = study_config(source)
    other = tmp_path / "other.jsonl"
    other.write_text(Path(source).read_text().replace("tell of", "sing of"))
    chosen, in_sample = choose(config, allow_calibration=True, source=str(other))
    assert len(chosen) == 16
    assert not in_sample


def test_prompts_of_another_source_are_all_unread(source: str, tmp_path: Path) -> None:
    config, _ = study_config(source)
    other = tmp_path / "other.jsonl"
    other.write_text(Path(source).read_text().replace("tell of", "sing of"))
    assert len(choose(config, source=str(other))[0]) == 16


def test_a_prompt_that_was_read_is_known_under_another_name(source: str, tmp_path: Path) -> None:
    config, splits = study_config(source)
    copy = tmp_path / "renamed.jsonl"
    copy.write_text(Path(source).read_text().replace('"id": "', '"id": "copy-'))
    chosen, _ = choose(config, source=str(copy))
    assert chosen == {prompt.hash for prompt in splits.test}


def test_with_several_files_no_prompt_that_any_search_read_is_used(source: str) -> None:
    first, splits = study_config(source)
    second, others = study_config(source, seed=1)
    request = BenchRequest()
    prompts, _ = choose_prompts(request, prompt_options(request, [first, second]), [first, second])
    read = {p.hash for s in (splits, others) for p in (*s.calibration, *s.selection)}
    assert {prompt.hash for prompt in prompts} == {prompt.hash for prompt in splits.test} - read


def test_without_a_study_every_prompt_is_unread(source: str) -> None:
    options = PromptOptions(source=source, num_prompts=10)
    prompts, in_sample = choose_prompts(BenchRequest(), options, [])
    assert (len(prompts), in_sample) == (10, False)


def test_without_a_number_a_source_of_fewer_than_64_prompts_is_used_whole(source: str) -> None:
    prompts, _ = choose_prompts(BenchRequest(), PromptOptions(source=source), [])
    assert len(prompts) == 24


# Studies of one task


def of_task(source: str, *tasks: str) -> SkipConfig:
    return skip_config(provenance={"prompts": {"source": source, "num_prompts": 16, "tasks": list(tasks)}})


def test_a_study_of_one_task_is_measured_on_that_task(tmp_path: Path) -> None:
    config = of_task(prompt_file(tmp_path / "set.jsonl", 24), "code")
    options = prompt_options(BenchRequest(), [config])
    assert options.tasks == ("code",)
    prompts, _ = choose_prompts(BenchRequest(), options, [config])
    assert {prompt.task for prompt in prompts} == {"code"}
    asked = BenchRequest(prompt_overrides=(("num_prompts", 5),))
    prompts, _ = choose_prompts(asked, prompt_options(asked, [config]), [config])
    assert [prompt.task for prompt in prompts] == ["code"] * 5


def test_the_tasks_of_a_study_are_not_asked_of_another_source(tmp_path: Path) -> None:
    config = of_task(prompt_file(tmp_path / "set.jsonl"), "code")
    asked = BenchRequest(prompt_overrides=(("source", "builtin"),))
    assert prompt_options(asked, [config]).tasks == ()


def test_the_longest_draft_and_the_threshold_are_overridden_too() -> None:
    draft = Draft(SKIP, DraftPolicy(PolicyKind.COST_AWARE, 5))
    asked = BenchRequest(draft_overrides=(("policy", "adaptive"), ("max_draft_tokens", 3), ("exit_threshold", 0.25)))
    assert overridden(draft, asked).policy == DraftPolicy(PolicyKind.ADAPTIVE, 3, 0.25)
    with pytest.raises(UsageError, match=r"^`exit_threshold` 0.25: the cost-aware policy has no .* `policy` threshold"):
        overridden(draft, BenchRequest(draft_overrides=(("exit_threshold", 0.25),)))
    with pytest.raises(UsageError, match=r"^`policy` 'quick': expected one of fixed"):
        overridden(draft, BenchRequest(draft_overrides=(("policy", "quick"),)))
    with pytest.raises(UsageError, match=r"^`max_draft_tokens` 5000: expected 1 to 1024"):
        overridden(draft, BenchRequest(draft_overrides=(("max_draft_tokens", 5000),)))
    asked = BenchRequest(draft_overrides=(("policy", "threshold"), ("exit_threshold", 2)))
    with pytest.raises(UsageError, match=r"^`exit_threshold` 2: expected a probability"):
        overridden(draft, asked)


def test_a_study_without_a_result_is_told_from_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is no study whose search has come to a result"):
        gather(BenchRequest(skip_files=(tmp_path,)))
    (tmp_path / "study.toml").touch()
    with pytest.raises(FileFormatError, match=r"has come to no result yet.*The command that began it goes on"):
        gather(BenchRequest(skip_files=(tmp_path,)))

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selfspec_tune.draft import Certainty, Round, Source
from selfspec_tune.draft.rounds import PLAIN_ROUND
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SkipSetError, UsageError
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.results import (
    ArmRun,
    BenchResult,
    DraftSettings,
    LosslessCount,
    MethodResult,
    ModelInfo,
    NullRun,
    PositionCounts,
    Score,
    SkipConfig,
    SkipLayers,
    StudyConfig,
    TaskResult,
)
from tests.runs import paired_run

FASTER = Interval(1.2, 1.1, 1.3)
MODEL = ModelInfo(id="org/tiny", fingerprint="0123456789abcdef", num_layers=4)


def method_result(**fields: Any) -> MethodResult:
    values: dict[str, Any] = {
        "name": "self-speculative",
        "id": "best",
        "num_prompts": 2,
        "num_runs": 2,
        "tokens_per_second": 7.5,
        "lossless": LosslessCount(identical=2),
    }
    return MethodResult(**(values | fields))


def skip_config(skip: SkipLayers | None = None) -> SkipConfig:
    return SkipConfig(
        model=MODEL,
        skip=skip or SkipLayers(attention=[1, 2], mlp=[3]),
        draft=DraftSettings(policy="threshold", max_draft_tokens=6, exit_threshold=0.6),
        score=Score(verdict="faster", end_to_end_speedup=FASTER, num_prompts=32),
        provenance={"prompts": {"calibration": ["aa"], "selection": ["bb"], "test": ["cc"]}},
    )


def bench_result() -> BenchResult:
    return BenchResult(
        model=MODEL,
        verdict="faster",
        methods=[method_result(skip=SkipLayers(attention=[1]), end_to_end_speedup=FASTER)],
        a_a=NullRun(end_to_end=Interval(1.0, 0.9, 1.1), decode=Interval(1.0, 0.9, 1.1), num_prompts=2),
        runs=[paired_run()],
    )


def study_config(**fields: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "model": "org/tiny",
        "model_fingerprint": "0123456789abcdef",
        "dtype": "float32",
        "device": "cpu",
    }
    return StudyConfig(**(values | fields))


def test_a_skip_config_reads_back_as_saved(tmp_path: Path) -> None:
    config = skip_config()
    config.save(tmp_path / "skip.json")
    assert SkipConfig.load(tmp_path / "skip.json") == config
    assert config.skip_set() == SkipSet(4, (1, 2), (3,))
    assert config.prompt_hashes("calibration", "selection") == {"aa", "bb"}


def test_a_skip_config_has_the_shape_that_others_script_against(tmp_path: Path) -> None:
    skip_config().save(tmp_path / "skip.json")
    value = json.loads((tmp_path / "skip.json").read_text())
    assert list(value)[:2] == ["schema", "version"]
    assert (value["schema"], value["version"]) == ("selfspec-tune/skip-config", 1)
    assert value["model"]["num_layers"] == 4
    assert value["skip"] == {"attention": [1, 2], "mlp": [3]}
    assert {"policy", "max_draft_tokens", "exit_threshold"} <= value["draft"].keys()
    assert value["score"]["end_to_end_speedup"] == {"value": 1.2, "low": 1.1, "high": 1.3}


def test_a_bench_result_reads_back_as_saved(tmp_path: Path) -> None:
    result = bench_result()
    result.save(tmp_path / "bench.json")
    assert BenchResult.load(tmp_path / "bench.json") == result
    assert result.method("best") == result.methods[0]
    assert result.method("other") is None


def test_a_bench_result_has_the_shape_that_others_script_against() -> None:
    value = bench_result().to_dict()
    assert (value["schema"], value["version"]) == ("selfspec-tune/bench", 1)
    method = value["methods"][0]
    assert method["end_to_end_speedup"] == {"value": 1.2, "low": 1.1, "high": 1.3}
    assert method["decode_speedup"] is None
    assert method["lossless"].items() >= {"identical": 2, "numerical_ties": 0, "mismatches": 0}.items()
    assert value["runs"][0]["candidate"]["accepted"] == [3, 2, 2]


def test_an_unbounded_interval_is_written_as_null_and_read_back(tmp_path: Path) -> None:
    unbounded = method_result(end_to_end_speedup=Interval(1.2, 0.0, math.inf))
    assert unbounded.to_dict()["end_to_end_speedup"] == {"value": 1.2, "low": 0.0, "high": None}
    assert MethodResult.model_validate(unbounded.to_dict()) == unbounded


def test_a_bound_that_two_noisy_prompts_give_is_read_back() -> None:
    noisy = method_result(end_to_end_speedup=cluster_bootstrap([1.0, 30.0], [30.0, 1.0], "ab"))
    assert noisy.end_to_end_speedup is not None
    assert noisy.end_to_end_speedup.high > 1e12
    assert MethodResult.model_validate(noisy.to_dict()) == noisy


@pytest.mark.parametrize(
    "speedup",
    [
        {"decode_speedup": FASTER},
        {"end_to_end_speedup": FASTER},
        {"geometric_mean_speedup": 1.2},
        {"per_task": {"code": TaskResult(num_prompts=1, decode_speedup=FASTER)}},
    ],
)
def test_a_lossy_method_can_carry_no_speedup(speedup: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="lossy, so no speedup"):
        method_result(lossless=LosslessCount(identical=1, mismatches=1), **speedup)
    method_result(lossless=LosslessCount(identical=1, numerical_ties=1), **speedup)


def test_a_result_cannot_be_changed_into_a_lossy_one() -> None:
    result = method_result(end_to_end_speedup=FASTER)
    with pytest.raises(ValidationError, match="frozen"):
        result.lossless = LosslessCount(mismatches=1)


ARM: dict[str, Any] = {"num_tokens": 3, "prefill_seconds": 0.1, "decode_seconds": 0.2}


def test_a_round_cannot_accept_more_than_it_drafted() -> None:
    with pytest.raises(ValidationError, match="sources of 1 rounds for 2 rounds"):
        ArmRun.model_validate(ARM | {"accepted": [0, 1], "drafted": [1, 1], "sources": ["model"]})
    with pytest.raises(ValidationError, match="accepted more tokens"):
        ArmRun.model_validate(ARM | {"accepted": [3], "drafted": [2]})
    with pytest.raises(ValidationError, match="accepted more tokens"):
        ArmRun(**ARM, rounds=(Round(2, 3),))
    with pytest.raises(ValidationError, match="2 accepted counts for 1 drafted"):
        ArmRun.model_validate(ARM | {"accepted": [1, 1], "drafted": [2]})
    with pytest.raises(ValidationError, match=r"(?s)passes.1.*valid integer"):
        ArmRun.model_validate(ARM | {"accepted": [1, 1], "drafted": [2, 2], "passes": [1, True]})


@pytest.mark.parametrize(
    ("columns", "rounds"),
    [
        ({}, ()),
        ({"accepted": [1, 0], "drafted": [3, 2]}, (Round(3, 1), Round(2, 0))),
        ({"accepted": [1], "drafted": [3], "sources": ["ngram"]}, (Round(3, 1, "ngram"),)),
        ({"accepted": [1], "drafted": [3], "sources": ["another"], "passes": [2]}, (Round(3, 1, "another", 2),)),
        (
            {"accepted": [1, 0], "drafted": [3, 0], "sources": ["model", "plain"], "passes": [2, 0], "guesses": [4, 0]},
            (Round(3, 1, Source.MODEL, 2, 4), PLAIN_ROUND),
        ),
    ],
    ids=["none", "counts alone", "with sources", "with passes", "everything"],
)
def test_rounds_are_columns_in_files_and_what_is_not_known_stays_empty(
    columns: dict[str, Any], rounds: tuple[Round, ...]
) -> None:
    read = ArmRun.model_validate(ARM | columns | {"novel": 1}, strict=True)
    assert read.rounds == rounds
    empty = {name: [] for name in ("accepted", "drafted", "sources", "passes", "guesses")}
    times = {"draft_seconds": 0.0, "verify_seconds": 0.0}
    expected = {**ARM, **times, **empty, **columns, "stop_reason": "length", "first_tokens": 1, "novel": 1}
    assert json.dumps(read.to_dict()) == json.dumps(expected)  # in this order too
    assert ArmRun(**ARM, rounds=rounds, novel=1) == read


SURE, UNSURE = Certainty(0.99994, 9.8765, 0.00123).rounded, Certainty(0.5, 0.0, 1.23456).rounded


def test_what_drafts_were_sure_of_is_a_list_a_run_of_few_digits() -> None:
    """Lookup's rounds, and plain ones, have no part in it; they have the lengths of their matches instead."""
    rounds = (
        Round(2, 2, Source.MODEL, 2, 0, (SURE, UNSURE)),
        Round(3, 1, "ngram", 0, 0, match_length=4),
        PLAIN_ROUND,
        Round(1, 0, Source.MODEL, 1, 0, (SURE,)),
    )
    written = ArmRun(**ARM, rounds=rounds).to_dict()
    assert written["match_lengths"] == [0, 4, 0, 0]
    assert written["confidences"] == [0.9999, 0.5, 0.9999]
    assert written["margins"] == [9.88, 0.0, 9.88]
    assert written["entropies"] == [0.0012, 1.2346, 0.0012]
    read = ArmRun.model_validate(written, strict=True)
    assert read.rounds == rounds
    assert read.to_dict() == written


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"confidences": [0.5]}, "1, 0, 0 confidences, margins and entropies for 2 tokens"),
        ({"confidences": [0.5], "margins": [0.1], "entropies": [0.1]}, "1, 1, 1 confidences, .* for 2 tokens"),
        ({"confidences": [0.5, 1.5], "margins": [0.1, 0.1], "entropies": [0.1, 0.1]}, r"confidences\.1"),
        ({"confidences": [0.5, 0.5], "margins": [0.1, 100.0], "entropies": [0.1, 0.1]}, r"margins\.1"),
        ({"confidences": [0.5, 0.5], "margins": [0.1, 0.1], "entropies": [0.1, math.inf]}, r"entropies\.1"),
        ({"match_lengths": [1]}, "match_lengths of 1 rounds for 2 rounds"),
        ({"match_lengths": [1, -1]}, r"match_lengths\.1"),
        ({"sources": [], "confidences": [0.5], "margins": [0.1], "entropies": [0.1]}, "for 0 tokens"),
    ],
)
def test_numbers_that_fit_no_drafted_token_are_refused(columns: dict[str, Any], message: str) -> None:
    rounds = {"accepted": [1, 1], "drafted": [2, 3], "sources": ["model", "ngram"], "passes": [2, 0], "guesses": [0, 0]}
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        ArmRun.model_validate(ARM | rounds | columns, strict=True)


@pytest.mark.parametrize("counts", [([2], [2], [3]), ([2], [3], [1]), ([2, 1], [2], [1]), ([2], [1], [-1])])
def test_more_tokens_cannot_be_accepted_at_a_position_than_were_drafted(counts: tuple[list[int], ...]) -> None:
    with pytest.raises(ValidationError, match="must not become more"):
        PositionCounts.model_validate(dict(zip(("drafted", "reached", "accepted"), counts, strict=True)))


def test_decode_steps_leave_out_the_token_of_the_prefill() -> None:
    steps = [ArmRun(num_tokens=n, prefill_seconds=1, decode_seconds=1).decode_steps for n in (0, 1, 5)]
    assert steps == [0, 0, 4]


def test_unknown_fields_of_a_later_program_are_kept(tmp_path: Path) -> None:
    value = skip_config().to_dict()
    value["novelty"] = {"a": 1}
    value["score"]["joules"] = [1.5]
    (tmp_path / "skip.json").write_text(json.dumps(value))
    assert SkipConfig.load(tmp_path / "skip.json").to_dict() == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "selfspec-tune/bench"}, "holds selfspec-tune/bench; expected schema"),
        ({"schema": None}, "holds the schema null; expected schema selfspec-tune/skip-config"),
        ({"version": 2}, "is version 2 .* reads up to 1.* Update selfspec-tune"),
        ({"version": None}, "states no version"),
        ({"skip": {"attention": "3"}}, "does not fit .*: skip.attention"),
        ({"version": 0}, "does not fit .*: version"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_was_expected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "skip.json").write_text(json.dumps(skip_config().to_dict() | change))
    with pytest.raises(FileFormatError, match=message):
        SkipConfig.load(tmp_path / "skip.json")


def test_a_json_list_is_no_skip_config(tmp_path: Path) -> None:
    (tmp_path / "skip.json").write_text("[1, 2]")
    with pytest.raises(FileFormatError, match="holds a list"):
        SkipConfig.load(tmp_path / "skip.json")


def test_missing_and_corrupt_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        SkipConfig.load(tmp_path / "skip.json")
    (tmp_path / "skip.json").write_text('{"schema": "selfspec-tune/skip-c')
    with pytest.raises(FileFormatError, match="not valid JSON"):
        SkipConfig.load(tmp_path / "skip.json")


def test_a_skip_config_with_a_layer_too_many_names_it() -> None:
    with pytest.raises(SkipSetError, match="layer 7 is out of range"):
        skip_config(SkipLayers(mlp=[7])).skip_set()


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        study_config,
        prompts=st.text(st.characters(exclude_categories=["Cs"])),
        num_prompts=st.none() | st.integers(1, 500),
        temperature=st.floats(0, 2),
        trials=st.none() | st.integers(1, 9),
    )
)
def test_a_study_configuration_reads_back_as_saved(
    tmp_path_factory: pytest.TempPathFactory, config: StudyConfig
) -> None:
    path = tmp_path_factory.mktemp("study") / "study.toml"
    config.save(path)
    assert StudyConfig.load(path) == config


def test_a_resumed_study_tells_what_differs() -> None:
    ours, theirs = study_config(seed=1, trials=40), study_config(seed=2, extra_flag=True)
    assert ours.differences(ours) == {}
    assert ours.differences(theirs) == {"seed": (1, 2), "trials": (40, None), "extra_flag": (None, True)}


def test_a_corrupt_or_foreign_study_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("seed = ")
    with pytest.raises(FileFormatError, match="not valid TOML"):
        StudyConfig.load(path)
    path.write_text('schema = "selfspec-tune/study"\nversion = 1\nmodel = 3\n')
    with pytest.raises(FileFormatError, match="does not fit selfspec-tune/study: model"):
        StudyConfig.load(path)


def test_a_name_that_is_no_text_reaches_json_and_no_toml(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff")
    config = skip_config().model_copy(update={"model": MODEL.model_copy(update={"id": name})})
    config.save(tmp_path / "skip.json")
    assert SkipConfig.load(tmp_path / "skip.json").model.id == name
    study = StudyConfig(model=name, model_fingerprint="0", dtype="float32", device="cpu")
    with pytest.raises(UsageError, match=r"study\.toml cannot hold the name .* Rename it"):
        study.save(tmp_path / "study.toml")
    assert not (tmp_path / "study.toml").exists()

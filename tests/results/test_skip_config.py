"""A skip.json whose values mean nothing is refused by key, before anything is built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.results import SkipConfig
from tests.results_kit import skip_config

HUGE = 10**9
# Where, what is written there, and what the message names.
REFUSED: list[tuple[str, Any, str]] = [
    ("model.num_layers", HUGE, "num_layers"),
    ("model.num_layers", 0, "num_layers"),
    ("model.num_layers", True, "num_layers"),
    ("model.num_layers", 12.0, "num_layers"),
    ("model.num_layers", "12", "num_layers"),
    ("model.id", 5, "model.id"),
    ("skip", {"attn": [2], "MLP": [2]}, "skip: it has the key 'attn'; known here are attention, mlp"),
    ("skip", {"attention": [2]}, "skip lacks mlp"),
    ("skip", {}, "skip lacks attention"),
    ("skip", [2], "skip"),
    ("skip.MLP", [2], "'MLP'"),
    ("skip.attention", [True], "skip.attention.0"),
    ("skip.attention", [1.0], "skip.attention.0"),
    ("skip.attention", ["\u0661"], "skip.attention.0"),
    ("skip.attention", "1", "skip.attention"),
    ("skip.attention", [12], "attention layer 12"),
    ("skip.mlp", [-1], "mlp layer -1"),
    ("draft.policy", "fast", "draft.policy"),
    ("draft.max_draft_tokens", HUGE, "max_draft_tokens"),
    ("draft.max_draft_tokens", 0, "max_draft_tokens"),
    ("draft.max_draft_tokens", True, "max_draft_tokens"),
    ("draft.exit_threshold", 1.5, "exit_threshold"),
    ("draft.exit_threshold", "0.5", "exit_threshold"),
    ("draft.exit_treshold", 0.5, "exit_treshold"),
    ("draft.vocabulary", 0, "vocabulary"),
    ("draft.vocabulary", -5, "vocabulary"),
    ("draft.vocabulary", HUGE, "vocabulary"),
    ("draft.vocabulary", 8.0, "vocabulary"),
    ("draft.step", "x", "step"),
    ("draft.step", True, "step"),
    ("draft.step", 2, "step"),
    ("draft.credit", 1e300, "credit"),
    ("draft.credit", -1, "credit"),
    ("draft.max_loss", 1, "max_loss"),
    ("draft.target_acceptance", [0.9], "target_acceptance"),
    ("draft.threshold_momentum", 7, "threshold_momentum"),
    ("draft.prior", {"mean": 0.5}, "prior.by_confidence"),
    ("draft.prior", {"mean": True, "by_confidence": [0.5] * 10}, "prior.mean"),
    ("draft.prior", {"mean": 0.5, "by_confidence": [0.5] * 9}, "10 acceptance rates"),
    ("draft.prior", 0.5, "prior"),
    ("draft.ngram", {"max_tokens": HUGE}, "ngram.max_tokens"),
    ("draft.ngram", {"max_match": HUGE}, "ngram.max_match"),
    ("draft.ngram", {"max_tokens": "4"}, "ngram.max_tokens"),
    ("draft.ngram", {"maxtokens": 4}, "maxtokens"),
    ("draft.ngram", {"min_match": 5, "max_match": 4}, "min_match"),
    ("draft.ngram", True, "draft.ngram"),
    ("draft.model_drafts", "no", "model_drafts"),
    ("draft.model_drafts", 0, "model_drafts"),
    ("draft.model_drafts", False, "drafts nothing"),
    ("draft.precision", "int3", "int3"),
    ("draft.precision", {"int4": {"attn": [1]}}, "precision.int4"),
    ("draft.precision", {"int4": [1]}, "precision.int4"),
    ("draft.precision", {"int4": {"attention": "1"}}, "precision.int4.attention"),
    ("draft.precision", {"int4": {"attention": [1]}, "int8": {"attention": [1]}}, "attn 1 twice"),
    ("draft.precision", {"int2": {}}, "int2"),
    ("draft.precision", {"head": 4}, "4"),
    ("objective", "alone", "objective"),
    ("score.verdict", "fastest", "score.verdict"),
    ("score.num_prompts", -1, "score.num_prompts"),
    ("score.acceptance_rate", 7, "score.acceptance_rate"),
    ("score.end_to_end_speedup", {"value": "1", "low": 1, "high": 2}, "end_to_end_speedup"),
    ("score.end_to_end_speedup", {"value": 1.2}, "end_to_end_speedup"),
    ("score.end_to_end_speedup", [1, 2, 3], "end_to_end_speedup"),
    ("provenance", [], "provenance"),
    ("provenance.prompts", ["a"], "prompts"),
    ("provenance.prompts.calibration", [1], "calibration"),
    ("provenance.prompts.num_prompts", "many", "num_prompts"),
    ("provenance.prompts.max_new_tokens", HUGE, "max_new_tokens"),
    ("provenance.hardware", "fast", "hardware"),
    ("provenance.selfspec_tune", {"commit": 5}, "commit"),
    ("provenance.search", {"start_from": ["x"]}, "start_from"),
    ("provenance.search", {"standalone": {"draft_tokens": 5}}, "standalone"),
    ("provenance.imported_from", {"file": "x"}, "dialect"),
    ("version", True, "states no version"),
]


def written(path: Path, place: str, value: Any) -> Path:
    """A skip.json with ``value`` at ``place``."""
    whole = skip_config().to_dict()
    part: Any = whole
    *parents, last = place.split(".")
    for name in parents:
        part = part[name]
    part[last] = value
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(("place", "value", "named"), REFUSED)
def test_a_value_that_means_nothing_is_refused_by_its_key(tmp_path: Path, place: str, value: Any, named: str) -> None:
    file = written(tmp_path / "skip.json", place, value)
    for command in (["show"], ["export", "--to", "knapspec"]):
        result = CliRunner().invoke(app, [*command, str(file)])
        assert result.exit_code == 2, result.output
        assert str(file) in result.stderr
        assert named in result.stderr
        assert "--debug" not in result.stderr


def test_a_misspelt_field_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    value = skip_config(objective="standalone").to_dict()
    (tmp_path / "skip.json").write_text(json.dumps({"Objectiv": value.pop("objective"), **value}))
    result = CliRunner().invoke(app, ["show", str(tmp_path / "skip.json")])
    assert result.exit_code == 2
    assert "'Objectiv' is no field of it; expected objective" in result.stderr


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("command", [["show"], ["bench"], ["export", "--to", "self-sd"]])
def test_what_is_no_number_is_refused_anywhere(tmp_path: Path, number: str, command: list[str]) -> None:
    file = tmp_path / "skip.json"
    skip_config().save(file)
    file.write_text(file.read_text().replace('"seed": 7', f'"seed": {number}'))
    result = CliRunner().invoke(app, [*command, str(file)])
    assert result.exit_code == 2
    assert "not valid JSON" in result.stderr


def test_bench_refuses_before_a_model_is_looked_for(tmp_path: Path) -> None:
    for place, value in (("model.num_layers", HUGE), ("draft.max_draft_tokens", HUGE), ("skip", {"attn": [2]})):
        result = CliRunner().invoke(app, ["bench", str(written(tmp_path / "skip.json", place, value))])
        assert result.exit_code == 2
        assert "skip.json does not fit" in result.stderr


def test_fields_of_later_versions_are_kept_where_they_change_no_draft(tmp_path: Path) -> None:
    for place in ("note", "model.licence", "score.energy", "provenance.weather", "provenance.prompts.language"):
        config = SkipConfig.load(written(tmp_path / "skip.json", place, "new"))
        value: Any = config.to_dict()
        for name in place.split("."):
            value = value[name]
        assert value == "new"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "skip.json"
    skip_config().save(file)
    file.write_text(file.read_text(encoding="utf-8"), encoding=encoding)
    assert SkipConfig.load(file) == skip_config()
    for command in (["show"], ["export", "--to", "self-sd"]):
        assert CliRunner().invoke(app, [*command, str(file)]).exit_code == 0


def test_a_depth_as_great_as_any_is_shown_at_once(tmp_path: Path) -> None:
    file = written(tmp_path / "skip.json", "model.num_layers", 10_000)
    assert CliRunner().invoke(app, ["show", str(file)]).exit_code == 0

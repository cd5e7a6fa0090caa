"""Sweeps: what each point changes, how they are interleaved, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import run_sweep
from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.measure import workload
from selfspec_tune.measure.contest import MeasurementInterrupted
from selfspec_tune.prompts import load_prompts
from selfspec_tune.requests import BenchRequest, SweepKind, SweepRequest
from selfspec_tune.results import MethodResult, SweepPoint, SweepResult
from tests.kit import tiny_tokenizer
from tests.runs import drafted_of
from tests.search_kit import Listener, ScriptedEngine, prompt_file, read_rows, steady, without_caches

NUM_PROMPTS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts") / "set.jsonl", 20)


@pytest.fixture
def sweep(tiny_llama_dir: Path, source: str) -> Any:
    """A sweep of three prompts on the tiny model, whose context is 1024 tokens."""

    def run(
        kind: str, *values: float, skip_sets: tuple[str, ...] = ("attn 1",), listener: Any = None, **fields: Any
    ) -> SweepResult:
        model = {"name": str(tiny_llama_dir), "dtype": fields.pop("dtype", "float32"), "device": "cpu"}
        model["runner"] = fields.pop("runner", "auto")
        prompts = {"source": source, "num_prompts": NUM_PROMPTS, "max_new_tokens": 8, "template": "raw"}
        prompts |= {name: fields.pop(name) for name in ("max_new_tokens", "num_prompts") if name in fields}
        options = {"reference_prompts": 1} | fields
        request = BenchRequest((), skip_sets, tuple(model.items()), tuple(prompts.items()), **options)
        return run_sweep(SweepRequest(request, SweepKind(kind), values or None), listener or Listener())

    return run


def values(result: SweepResult) -> list[float]:
    return [point.value for point in result.points]


def main(point: SweepPoint) -> MethodResult:
    return next(method for method in point.methods if method.name == "self-speculative")


def test_a_longer_context_lowers_the_memorys_limit(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_caches(monkeypatch)
    limits = [point.memory_limit for point in sweep("context", 100, 400).points]
    assert None not in limits
    # Keys and values of 300 positions: 4 layers, 2 heads of 16, in bfloat16. Prompts are lengthened by whole texts.
    assert limits[1].bytes_per_token - limits[0].bytes_per_token == pytest.approx(300 * 4 * 2 * 2 * 16 * 2, rel=0.1)


def test_a_sweep_of_contexts_lengthens_the_same_prompts(sweep: Any) -> None:
    result = sweep("context", 200, 100, 400)
    assert values(result) == [100, 200, 400]
    for point in result.points:
        assert point.value - 12 <= point.prompt_tokens <= point.value
        assert main(point).lossless.identical == NUM_PROMPTS
        assert [method.name for method in point.methods] == ["autoregressive", "self-speculative", "hf-generate"]
        assert point.a_a is not None
        assert point.baseline_vs_generate is not None
    of_point = {value: {run.prompt_hash for run in result.runs if run.point == value} for value in (100, 200, 400)}
    assert of_point[100] == of_point[200] == of_point[400]
    assert {run.prompt_tokens for run in result.runs if run.point == 400} <= set(range(388, 401))
    assert "seeded order" in result.description


def test_a_cost_aware_policy_counts_on_steps_timed_at_each_context(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    measure = workload.measure_step_costs

    def noted(runner: Any, context: Any, *arguments: Any, **options: Any) -> Any:
        lengths.append(len(context))
        return measure(runner, context, *arguments, **options)

    monkeypatch.setattr(workload, "measure_step_costs", noted)
    result = sweep("context", 100, 400, draft_overrides=(("policy", "cost-aware"), ("ngram", True)))
    assert sorted(lengths) == [100, 400]
    assert [main(point).lossless.identical for point in result.points] == [NUM_PROMPTS, NUM_PROMPTS]


def test_temperatures_are_greedy_at_0_and_sampled_above(sweep: Any) -> None:
    result = sweep("temperature")
    assert values(result) == [0.0, 0.3, 0.7, 1.0]
    assert [main(point).lossless.sampled for point in result.points] == [0, 3, 3, 3]
    assert main(result.points[0]).lossless.identical == 3


def test_longest_drafts_change_the_policy_alone(sweep: Any) -> None:
    result = sweep("max-draft", skip_sets=("none",), max_new_tokens=12)
    assert values(result) == [1, 2, 3, 4, 6, 8]  # 12 and 16 can never be drafted in an answer of 12 tokens
    assert len({main(point).id for point in result.points}) == 1
    for point in result.points:
        drafted = [n for run in result.runs if run.point == point.value for n in drafted_of(run.candidate.rounds)]
        assert max(drafted) <= point.value
        assert main(point).acceptance_rate == 1.0
    mats = [main(point).mean_accepted_tokens for point in result.points]
    assert mats == sorted(mats)


def test_the_blocks_of_the_values_turn_over_one_another(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    log = tmp_path / "log.jsonl"
    sweep("max-draft", 1, 2, 4, log=log, rounds=2)
    rows = [row for row in read_rows(log) if row.get("method", "").startswith("self-speculative")]
    order = [row["point"] for row in rows]
    assert order[:12] == [1, 2, 4, 2, 4, 1, 4, 1, 2, 4, 2, 1]
    for start in range(0, len(order), 3):
        assert len({(row["prompt_id"], row["round"]) for row in rows[start : start + 3]}) == 1
        assert set(order[start : start + 3]) == {1, 2, 4}


def test_a_sweep_resumes(sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = ScriptedEngine(steady(1.5)).install(monkeypatch)

    def interrupt(measured: int) -> None:
        if measured >= 8:
            raise KeyboardInterrupt

    engine.before_block = interrupt
    log = tmp_path / "sweep.runs.jsonl"
    with pytest.raises(MeasurementInterrupted, match="after 4 of 6 blocks"):
        sweep("temperature", 0, 1, log=log)
    engine.before_block = lambda measured: None
    engine.measured.clear()
    result = sweep("temperature", 0, 1, log=log)
    assert len(engine.measured) == 2
    assert result.provenance["resumed"] == 1
    assert len(result.runs) == 10
    assert [main(point).num_runs for point in result.points] == [3, 3]
    with pytest.raises(UsageError, match=r"points was 0, 1, is 0, 0.5, 1"):
        sweep("temperature", 0, 0.5, 1, log=log)
    with pytest.raises(UsageError, match="sweep was temperature, is max-draft"):
        sweep("max-draft", 1, 2, log=log)


def test_several_skip_sets_are_followed_over_the_values(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    result = sweep("max-draft", 2, 3, skip_sets=("attn 1", "mlp 2"))
    ids = [[m.id for m in point.methods if m.name == "self-speculative"] for point in result.points]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2


def test_a_sweeps_json_is_read_back(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    value = json.loads(json.dumps(sweep("max-draft", 2, 3).to_dict()))
    assert (value["schema"], value["version"], value["sweep"]) == ("selfspec-tune/sweep", 1, "max-draft")
    assert set(value["points"][0]["methods"][1]["decode_speedup"]) >= {"value", "low", "high"}
    assert SweepResult.from_dict(value, origin="here").to_dict() == value


def test_in_bfloat16_every_point_has_its_own_numeric_floor(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    result = sweep("context", 100, 300, dtype="bfloat16", runner="fast")
    floors = [point.numeric_floor or 0.0 for point in result.points]
    assert max(floors) > 0
    assert floors[0] != floors[1]
    assert "empty-skip-set" in [method.name for method in result.points[0].methods]


def test_a_lossy_point_has_no_speedup_and_says_so(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(draft: Any, item: Any) -> tuple[float, float, str]:
        return 1.0, 1.5, "mismatch" if draft.policy.max_draft_tokens == 3 else "identical"

    ScriptedEngine(script).install(monkeypatch)
    result = sweep("max-draft", 2, 3)
    assert main(result.points[0]).decode_speedup is not None
    assert main(result.points[1]).decode_speedup is None
    assert result.points[1].verdict == "withheld"
    assert any(warning.startswith("At 3: ") for warning in result.warnings)


def test_usual_contexts_are_those_that_model_and_text_allow(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    listener = Listener()
    # 1024 and more exceed the context; 20 short prompts hold fewer than 1024 characters all together.
    result = sweep("context", listener=listener)
    assert values(result) == [256, 512]


def test_prompts_longer_than_the_shortest_context_are_left_out_everywhere(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    with pytest.raises(PromptError, match="every prompt is longer"):
        sweep("context", 16, 100)
    alone = {run.prompt_hash for run in sweep("max-draft", 1, 2, num_prompts=12).runs}
    lengths = {prompt.hash: len(tiny_tokenizer()(prompt.text)["input_ids"]) for prompt in load_prompts(source)}
    short = {prompt for prompt in alone if lengths[prompt] <= 31}
    assert 0 < len(short) < len(alone) == 12
    listener = Listener()
    result = sweep("context", 31, 200, num_prompts=12, listener=listener)
    for value in (31, 200):
        assert {run.prompt_hash for run in result.runs if run.point == value} == short
    assert set(result.provenance["prompts"]["test"]) == short
    assert any(f"{12 - len(short)} of 12 prompts have more than 31" in notice for notice in listener.notices)


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (
            "context",
            (256, 1020),
            r"`sweep_values` 1020: with 8 new tokens that does not fit the model's context of 1024",
        ),
        ("context", (256, 1016), r"with all other prompts of its source before it; 1016"),
        ("max-draft", (2, 7), r"`sweep_values` 7: of 8 new tokens at most 6 can be drafted"),
    ],
)
def test_a_value_that_is_not_possible_is_refused(sweep: Any, kind: str, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        sweep(kind, *asked)
    assert caught.value.exit_code == 2


def test_too_few_usual_values_are_an_error(sweep: Any) -> None:
    with pytest.raises(UsageError, match="fewer than two of its usual values"):
        sweep("max-draft", max_new_tokens=3)


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("context", (8, 256), "`sweep_values` 8: `sweep` context takes whole numbers from 16 on"),
        ("context", (64, 99.5), "`sweep_values` 99.5: "),
        ("temperature", (0, -1), "`sweep_values` -1: `sweep` temperature takes numbers from 0 on"),
        ("temperature", (0, float("inf")), "`sweep_values` inf: "),
        ("max-draft", (0, 2), "`sweep_values` 0: `sweep` max-draft takes whole numbers from 1 on"),
        ("max-draft", (2, 2), "`sweep_values` 2,2: expected at least two values, all different"),
        ("max-draft", (2,), "`sweep_values` 2: expected at least two values"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_read(kind: str, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SweepRequest(BenchRequest(), SweepKind(kind), asked)


def test_a_temperature_beside_a_sweep_of_them_is_refused() -> None:
    with pytest.raises(UsageError, match="not `temperature`"):
        SweepRequest(BenchRequest(prompt_overrides=(("temperature", 0.5),)), SweepKind.TEMPERATURE)

"""A bench with a log: what it keeps, how it resumes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from selfspec_tune.bench import run_bench
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.measure import lossless as lossless_module
from selfspec_tune.measure.arms import SELF_SPECULATIVE
from selfspec_tune.measure.contest import MeasurementInterrupted
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.requests import BenchRequest, log_beside
from selfspec_tune.results import BenchResult, PairedRun
from selfspec_tune.results.logs import first_difference
from tests.search_kit import Listener, ScriptedEngine, prompt_file, read_rows, steady

NUM_PROMPTS, NUM_REFERENCES = 4, 2
# The contender on every prompt; the A-A run and model.generate on the first two.
NUM_PAIRS = NUM_PROMPTS + 2 * NUM_REFERENCES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts") / "set.jsonl", 20)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "bench.runs.jsonl"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    return ScriptedEngine(steady(1.5)).install(monkeypatch)


@pytest.fixture
def bench(tiny_llama_dir: Path, source: str, log: Path) -> Any:
    """A logged bench of four prompts on the tiny model."""

    def run(*skip_sets: str, listener: Listener | None = None, **fields: Any) -> BenchResult:
        model = {"name": str(tiny_llama_dir), "dtype": fields.pop("dtype", "float32"), "device": "cpu"}
        model["runner"] = fields.pop("runner", "auto")
        prompts = {"source": source, "num_prompts": NUM_PROMPTS, "max_new_tokens": 8, "template": "raw"}
        prompts |= {name: fields.pop(name) for name in ("max_new_tokens", "num_prompts", "seed") if name in fields}
        options = {"reference_prompts": NUM_REFERENCES, "uniform_and_random": False, "log": log}
        request = BenchRequest((), skip_sets, tuple(model.items()), tuple(prompts.items()), **(options | fields))
        return run_bench(request, listener or Listener())

    return run


def interrupt_after(engine: ScriptedEngine, pairs: int) -> None:
    """Ctrl-C before the first block that follows so many measured pairs."""

    def before_block(measured: int) -> None:
        if measured >= pairs:
            raise KeyboardInterrupt

    engine.before_block = before_block


def undisturbed(engine: ScriptedEngine) -> None:
    engine.before_block = lambda measured: None
    engine.measured.clear()


def test_the_log_lies_beside_the_result() -> None:
    assert log_beside(Path("a/bench.json")) == Path("a/bench.runs.jsonl")
    assert log_beside(Path("a/bench.v2")) == Path("a/bench.v2.runs.jsonl")


def test_a_log_holds_what_is_measured_and_every_pair(bench: Any, log: Path) -> None:
    result = bench("attn 1")
    heading, session, *runs = read_rows(log)
    assert (heading["schema"], heading["version"]) == ("selfspec-tune/bench-log", 1)
    defined = heading["measurement"]
    assert defined["dtype"] == "float32"
    assert defined["prompts"]["max_new_tokens"] == 8
    assert len(defined["prompt hashes"]) == NUM_PROMPTS
    assert {"model fingerprint", "device", "runner", "rounds", "threads", "selfspec-tune"} <= set(defined)
    assert len(session["methods"]) == 3
    assert [PairedRun.model_validate(row) for row in runs] == result.runs
    assert {row["session"] for row in runs} == {1}
    assert result.provenance["resumed"] == 0
    assert result.provenance["sessions"][0]["runs"] == NUM_PAIRS


def test_a_resumed_bench_keeps_the_runner_it_was_begun_with(bench: Any, engine: ScriptedEngine, log: Path) -> None:
    bench("attn 1", runner="reference")
    undisturbed(engine)
    bench("attn 1")
    assert engine.measured == []
    with pytest.raises(UsageError, match="runner was reference, is fast"):
        bench("attn 1", runner="fast")
    bench("attn 1", fresh=True, runner="fast")
    assert read_rows(log)[0]["measurement"]["runner"] == "fast"


def test_an_interrupted_bench_says_how_far_it_came_and_resumes(bench: Any, engine: ScriptedEngine, log: Path) -> None:
    interrupt_after(engine, 3)
    with pytest.raises(MeasurementInterrupted, match=r"after 1 of 4 blocks, which .*runs.jsonl keeps; run the same"):
        bench("attn 1")
    kept = read_rows(log)
    undisturbed(engine)
    listener = Listener()
    result = bench("attn 1", listener=listener)
    assert any("resuming" in notice and "1 of 4 blocks" in notice for notice in listener.notices)
    assert read_rows(log)[: len(kept)] == kept
    assert len(engine.measured) == NUM_PAIRS - 3
    assert result.provenance["resumed"] == 1
    assert [session["runs"] for session in result.provenance["sessions"]] == [3, NUM_PAIRS - 3]
    blocks: dict[tuple[str, int], set[int | None]] = {}
    for pair in result.runs:
        blocks.setdefault((pair.prompt_id, pair.round), set()).add(pair.session)
    assert all(len(sessions) == 1 for sessions in blocks.values())


def test_runs_of_each_session_keep_what_the_memory_allowed_then(
    bench: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = 100.0

    def beside(self: PlainLimit, measure: Callable[[], list[PairedRun]]) -> list[PairedRun]:
        marks = {"plain_bytes": 10.0, "memory_bytes_per_second": speed}
        return [run.model_copy(update=marks) for run in measure()]

    monkeypatch.setattr(PlainLimit, "beside", beside)
    interrupt_after(engine, 3)
    with pytest.raises(MeasurementInterrupted):
        bench("attn 1")
    undisturbed(engine)
    speed = 50.0
    result = bench("attn 1")
    assert {(run.session, run.limit_seconds) for run in result.runs} == {(1, 0.1), (2, 0.2)}
    # A quarter of the prompts at the first speed; 15 tokens a second by the script, at any.
    allowed = (0.1 + 3 * 0.2) / NUM_PROMPTS
    assert result.memory_limit is not None
    assert result.memory_limit.tokens_per_second == pytest.approx(1 / allowed)
    (share,) = [m.of_memory_limit for m in result.methods if m.name == SELF_SPECULATIVE]
    assert share is not None
    assert share.value == pytest.approx(15 * allowed)


def test_without_a_log_an_interrupt_says_what_would_have_helped(bench: Any, engine: ScriptedEngine) -> None:
    interrupt_after(engine, 3)
    with pytest.raises(MeasurementInterrupted, match="after 1 of 4 blocks; nothing was kept, `out` FILE"):
        bench("attn 1", log=None)


def test_a_finished_bench_is_read_not_repeated(bench: Any, engine: ScriptedEngine, log: Path) -> None:
    first = bench("attn 1")
    content = log.read_text()
    undisturbed(engine)
    listener = Listener()
    again = bench("attn 1", listener=listener)
    assert engine.measured == []
    assert log.read_text() == content
    assert any("is finished" in notice and "`fresh`" in notice for notice in listener.notices)
    assert (again.methods, again.runs, again.provenance) == (first.methods, first.runs, first.provenance)


def test_fresh_measures_again_and_keeps_the_earlier_runs(bench: Any, engine: ScriptedEngine, log: Path) -> None:
    bench("attn 1")
    content = log.read_text()
    for number in (1, 2):
        undisturbed(engine)
        bench("attn 1", fresh=True)
        assert len(engine.measured) == NUM_PAIRS
        assert log.with_name(f"{log.name}.{number}").exists()
    assert log.with_name(f"{log.name}.1").read_text() == content


def test_fresh_without_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="give that file with `out`"):
        BenchRequest(fresh=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
        ({"max_new_tokens": 9}, "prompts max_new_tokens was 8, is 9"),
        ({"rounds": 2}, "rounds was 1, is 2"),
        ({"seed": 5}, "prompts seed was 0, is 5"),
        ({"num_prompts": 5}, "prompt hashes was"),
        ({"reference_prompts": 1}, "reference prompts was 2, is 1"),
    ],
)
def test_another_measurement_is_refused_by_its_first_difference(
    bench: Any, engine: ScriptedEngine, log: Path, change: dict[str, Any], message: str
) -> None:
    bench("attn 1")
    content = log.read_text()
    with pytest.raises(UsageError, match=message) as caught:
        bench("attn 1", **change)
    assert "`fresh`" in str(caught.value)
    assert caught.value.exit_code == 2
    assert log.read_text() == content


def test_a_method_that_comes_later_gets_blocks_and_a_baseline_of_its_own(bench: Any, log: Path) -> None:
    first = bench("attn 1")
    listener = Listener()
    result = bench("attn 1", "mlp 2", listener=listener)
    old, new = (method.id for method in result.methods[1:3])
    assert [pair for pair in result.runs if pair.method == old] == [p for p in first.runs if p.method == old]
    added = [pair for pair in result.runs if pair.method == new]
    assert len(added) == NUM_PROMPTS
    assert {pair.session for pair in added} == {2}
    earlier = {pair.prompt_id: pair.baseline for pair in first.runs}
    assert all(pair.baseline.decode_seconds != earlier[pair.prompt_id].decode_seconds for pair in added)
    assert len(read_rows(log)) == 1 + 2 + NUM_PAIRS + NUM_PROMPTS
    assert any("1 methods are new to the log" in notice for notice in listener.notices)


def test_a_method_that_is_not_asked_for_is_left_out_and_kept(bench: Any, engine: ScriptedEngine, log: Path) -> None:
    bench("attn 1", "mlp 2")
    content = log.read_text()
    listener = Listener()
    result = bench("attn 1", listener=listener)
    assert [method.name for method in result.methods] == ["autoregressive", "self-speculative", "hf-generate"]
    assert any("1 methods that were not asked for" in notice for notice in listener.notices)
    assert log.read_text() == content


def test_another_method_under_a_known_id_is_refused(bench: Any, engine: ScriptedEngine) -> None:
    bench("attn 1,2", uniform_and_random=True)
    with pytest.raises(UsageError, match=r"holds another method (uniform|random): description was"):
        bench("mlp 1-3", "attn 1,2", uniform_and_random=True)


def test_the_numeric_floor_is_found_once(
    bench: Any, engine: ScriptedEngine, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(engine, 3)
    with pytest.raises(MeasurementInterrupted):
        bench("attn 1", dtype="bfloat16")
    floor = read_rows(log)[0]["numeric_floors"][""]
    undisturbed(engine)

    def never(*_: Any) -> float:
        raise AssertionError("a second floor was measured")

    monkeypatch.setattr(lossless_module, "numeric_floor", never)
    assert bench("attn 1", dtype="bfloat16").provenance["numeric_floor"] == floor


def test_two_benches_do_not_write_to_one_log(bench: Any, log: Path) -> None:
    with FileLock(str(log.with_name(f".{log.name}.lock"))), pytest.raises(UsageError, match="in use by another bench"):
        bench("attn 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "x"}, "is no log of a bench"),
        ({"schema": "selfspec-tune/bench-log", "version": 2}, "is version 2 of"),
    ],
)
def test_a_file_that_is_no_log_is_refused(bench: Any, log: Path, row: dict[str, Any], message: str) -> None:
    log.write_text(json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match=message):
        bench("attn 1")


def test_the_first_difference_names_its_place_and_keeps_long_lists_short() -> None:
    assert first_difference({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1]}}) is None
    assert first_difference({"b": {"c": None}}, {"b": {"c": 2}}) == "b c was none, is 2"
    many = first_difference({"h": ["x" * 16] * 40}, {"h": ["y" * 16] * 39})
    assert many is not None
    assert many.startswith("h was 40 (")
    assert "is 39 (" in many

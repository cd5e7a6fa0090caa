from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import RawGeneration
from selfspec_tune.errors import RivalError
from selfspec_tune.files import append_jsonl
from selfspec_tune.measure import contest as contest_module
from selfspec_tune.measure.arms import BASELINE, NULL, SELF_SPECULATIVE, Arm
from selfspec_tune.measure.contest import Contest, TimeLimit, on_common_prompts, run_together
from selfspec_tune.measure.pairs import Block, blocks, measure_block, turned
from selfspec_tune.measure.workload import WorkItem, shortened
from selfspec_tune.results import PairedRun
from tests.runs import paired_run
from tests.search_kit import Listener, ScriptedEngine, make_item, read_rows, steady

ITEMS = [make_item(number) for number in range(6)]


class Interrupted(Exception):
    """Ends a contest in the middle."""


class Journal:
    """Arms that note what they decode, and a baseline to match."""

    def __init__(self) -> None:
        self.decoded: list[tuple[str, str, int]] = []

    def arm(self, arm_id: str, name: str = SELF_SPECULATIVE, draft: Draft | None = None) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            self.decoded.append((arm_id, item.id, item.limits.max_new_tokens))
            return RawGeneration(tokens=[1, 2, 3], prefill_seconds=0.1, decode_seconds=1.0)

        return Arm(arm_id, name, decode, draft)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def reserved() -> list[int]:
    """Cache sizes that were asked for."""
    return []


@pytest.fixture
def make_contest(monkeypatch: pytest.MonkeyPatch, journal: Journal, reserved: list[int]) -> Callable[..., Contest]:
    monkeypatch.setattr(contest_module, "autoregressive_arm", lambda workload: journal.arm(BASELINE, BASELINE))
    workload: Any = SimpleNamespace(speculating=SimpleNamespace(reserve=reserved.append))

    def make(contenders: Sequence[str], references: Sequence[str] = (), **options: Any) -> Contest:
        items = options.pop("items", ITEMS)
        check: Any = None
        return Contest(
            workload,
            check,
            items,
            [journal.arm(name, draft=Draft(SkipSet(4, (1,)))) for name in contenders],
            [journal.arm(name, NULL) for name in references],
            **options,
        )

    return make


def run(contest: Contest, listener: Listener | None = None) -> list[PairedRun]:
    """The contest alone."""
    (runs,) = run_together([contest], listener or Listener())
    return runs


def pairs(runs: Sequence[PairedRun]) -> list[tuple[str, str, int]]:
    return [(run.method, run.prompt_id, run.round) for run in runs]


def test_every_contender_meets_the_baseline_on_every_item(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    runs = run(make_contest(["x", "y"]))
    assert pairs(runs) == [(name, item.id, 0) for item in ITEMS for name in ("x", "y")]


def test_references_run_on_the_first_items_of_the_first_round_only(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    runs = run(make_contest(["x"], ["null", "generate"], num_reference_items=2, rounds=2))
    of_references = [pair for pair in pairs(runs) if pair[0] != "x"]
    assert of_references == [(name, item.id, 0) for item in ITEMS[:2] for name in ("null", "generate")]
    assert len([pair for pair in pairs(runs) if pair[0] == "x"]) == 12


def test_every_arm_is_warmed_up_on_the_longest_item_at_its_full_length(
    make_contest: Callable[..., Contest],
    monkeypatch: pytest.MonkeyPatch,
    journal: Journal,
    reserved: list[int],
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    items = [make_item(0), make_item(1, prompt_tokens=30), make_item(2)]
    run(make_contest(["x"], ["null"], num_reference_items=1, items=items))
    assert journal.decoded == [(name, "set/1", 8) for name in (BASELINE, "x", "null")]
    assert reserved == [30 + 12]


def test_records_are_logged_block_by_block(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    logged: list[int] = []

    def count_rows(measured: int) -> None:
        logged.append(len(read_rows(log)) if log.exists() else 0)

    ScriptedEngine(steady(1.5), before_block=count_rows).install(monkeypatch)
    runs = run(make_contest(["x", "y"], log=log))
    assert logged == [0, 2, 4, 6, 8, 10]
    assert [PairedRun.model_validate(row) for row in read_rows(log)] == runs


def test_a_contest_goes_on_from_its_log(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    engine = ScriptedEngine(steady(1.5)).install(monkeypatch)

    def stop(measured: int) -> None:
        if measured == 3 * 2:
            raise Interrupted

    engine.before_block = stop
    with pytest.raises(Interrupted):
        run(make_contest(["x", "y"], log=log))
    first = read_rows(log)
    engine.before_block = lambda measured: None
    engine.script = steady(3.0)
    engine.measured.clear()
    runs = run(make_contest(["x", "y"], log=log))
    assert {item_id for _, item_id in engine.measured} == {item.id for item in ITEMS[3:]}
    assert [run.to_dict() for run in runs[:6]] == first
    assert len(set(pairs(runs))) == len(runs) == 12


def test_a_finished_contest_measures_and_warms_up_nothing(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, journal: Journal, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    engine = ScriptedEngine(steady(1.5)).install(monkeypatch)
    first = run(make_contest(["x"], ["null"], num_reference_items=1, log=log))
    journal.decoded.clear()
    engine.measured.clear()
    again = run(make_contest(["x"], ["null"], num_reference_items=1, log=log))
    assert again == first
    assert journal.decoded == engine.measured == []


def test_records_of_other_arms_and_items_in_a_log_are_left_out(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    run(make_contest(["old"], log=log))
    run(make_contest(["x"], items=[make_item(77)], log=log))
    runs = run(make_contest(["x"], log=log))
    assert pairs(runs) == [("x", item.id, 0) for item in ITEMS]


def test_a_block_that_was_cut_off_counts_once(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    complete = run(make_contest(["x", "y"]))
    for record in complete[:3]:
        append_jsonl(log, record.to_dict())
    runs = run(make_contest(["x", "y"], log=log))
    assert sorted(pairs(runs)) == sorted(set(pairs(runs)))


def test_a_shortened_item_is_the_same_with_a_smaller_limit() -> None:
    item = make_item(3, max_new_tokens=40)
    assert shortened(item, 8).limits.max_new_tokens == 8
    assert shortened(item, 8).tokens == item.tokens
    assert shortened(item, 400).limits.max_new_tokens == 40


# Blocks: order, seeds and records


def test_the_order_of_arms_turns_and_is_mirrored(journal: Journal) -> None:
    arms = [journal.arm(name) for name in "abc"]
    orders = ["".join(arm.id for arm in turned(arms, index)) for index in range(7)]
    assert orders == ["abc", "bca", "cab", "cba", "acb", "bac", "abc"]


def test_over_a_turn_no_arm_is_favoured(journal: Journal) -> None:
    arms = [journal.arm(name) for name in "abcd"]
    orders = [[arm.id for arm in turned(arms, index)] for index in range(8)]
    for name in "abcd":
        assert sorted(order.index(name) for order in orders) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_blocks_go_through_every_item_once_a_round() -> None:
    sequence = list(blocks(ITEMS[:3], rounds=2))
    assert [(block.item.id, block.round, block.index) for block in sequence] == [
        ("set/0", 0, 0),
        ("set/1", 0, 1),
        ("set/2", 0, 2),
        ("set/0", 1, 3),
        ("set/1", 1, 4),
        ("set/2", 1, 5),
    ]


@pytest.fixture
def seeds() -> list[int]:
    """Seeds that the sampler was started with."""
    return []


@pytest.fixture
def fake_workload(seeds: list[int]) -> Any:
    return SimpleNamespace(
        sampler=SimpleNamespace(restart=seeds.append),
        options=SimpleNamespace(seed=2),
        loaded=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda tokens, **_: f"text of {tokens}")),
    )


def all_identical(item: WorkItem, ours: list[int], theirs: list[int], model: Any = None, rounds: Any = None) -> Any:
    return SimpleNamespace(status="identical" if ours == theirs else "mismatch", first_difference=None, logit_gap=None)


def failing_block(arm_id: str, blocks_before: int) -> Callable[..., list[PairedRun]]:
    """Stands in for ``measure_block``: the arm fails from its block number ``blocks_before`` on."""
    engine, seen = ScriptedEngine(steady(1.5)), []

    def measure(workload: Any, baseline: Arm, arms: Sequence[Arm], block: Block, check: Any) -> list[PairedRun]:
        if any(arm.id == arm_id for arm in arms):
            seen.append(block)
            if len(seen) > blocks_before:
                raise RivalError(arm_id, "out of memory")
        return engine(workload, baseline, arms, block, check)

    return measure


@pytest.mark.parametrize("blocks_before", [0, 3])
def test_a_rival_that_fails_is_left_out_and_the_others_go_on(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, blocks_before: int
) -> None:
    monkeypatch.setattr(contest_module, "measure_block", failing_block("y", blocks_before))
    contest, listener = make_contest(["x", "y", "z"], rounds=2), Listener()
    runs = run(contest, listener)
    assert contest.unavailable == {"y": "out of memory"}
    assert pairs(runs) == [(name, item.id, number) for number in (0, 1) for item in ITEMS for name in ("x", "z")]
    assert listener.notices == ["y is left out: out of memory"]


def test_a_rival_that_fails_while_warming_up_never_competes(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(item: WorkItem) -> RawGeneration:
        raise RivalError("rival", "cannot")

    engine = ScriptedEngine(steady(1.5)).install(monkeypatch)
    contest = make_contest(["x"])
    runs = run(replace(contest, contenders=[*contest.contenders, Arm("rival", "rival", decode)]))
    assert {run.method for run in runs} == {"x"}
    assert len(engine.measured) == len(ITEMS)


def timed_block(seconds: dict[str, float]) -> Callable[..., list[PairedRun]]:
    """Stands in for ``measure_block``: every arm takes its ``seconds``."""

    def measure(workload: Any, baseline: Arm, arms: Sequence[Arm], block: Block, check: Any) -> list[PairedRun]:
        prompt = block.item.prompt
        return [
            paired_run(
                block.item.id,
                method=arm.id,
                prompt_hash=prompt.hash,
                round=block.round,
                baseline=(11, 0.0, 1.0),
                candidate=(11, 0.0, seconds[arm.id]),
            )
            for arm in arms
        ]

    return measure


@pytest.mark.parametrize(("slow", "by_transformers", "measured"), [(9.0, True, 4), (7.0, True, 6), (9.0, False, 6)])
def test_a_hopelessly_slow_rival_is_not_measured_on_every_prompt(
    make_contest: Callable[..., Contest],
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    slow: float,
    by_transformers: bool,
    measured: int,
) -> None:
    monkeypatch.setattr(contest_module, "measure_block", timed_block({"ours": 0.5, "hf-generate": 2.0, "slow": slow}))
    rivals = [replace(journal.arm(name, name), by_transformers=by_transformers) for name in ("hf-generate", "slow")]
    contest = make_contest(["ours"], log=tmp_path / "runs.jsonl")
    contest = replace(contest, contenders=[*contest.contenders, *rivals])
    listener = Listener()
    runs = run(contest, listener)
    assert Counter(run.method for run in runs) == {"ours": 6, "hf-generate": 6, "slow": measured}
    assert [notice for notice in listener.notices if "not measured on more" in notice] == listener.notices
    assert len(listener.notices) == (measured == 4)
    again = replace(contest)  # resumed, nothing more is measured either
    assert run(again) == runs


def test_a_block_pairs_each_candidate_with_the_one_run_of_the_baseline(
    journal: Journal, fake_workload: Any, seeds: list[int]
) -> None:
    check: Any = all_identical
    arms = [journal.arm("x"), journal.arm("y")]
    runs = measure_block(fake_workload, journal.arm(BASELINE), arms, Block(ITEMS[1], 0, 4, 4), check)
    assert [name for name, _, _ in journal.decoded] == [BASELINE, "y", "x"]
    assert [(run.method, run.order, run.baseline_order) for run in runs] == [("x", 2, 0), ("y", 1, 0)]
    assert {(run.prompt_id, run.round, run.lossless) for run in runs} == {("set/1", 0, "identical")}
    assert len(seeds) == 3
    assert len(set(seeds)) == 1
    assert runs[0].to_dict()["text"] == "text of [1, 2, 3]"


def test_over_two_rounds_each_item_sees_both_orders(journal: Journal, fake_workload: Any) -> None:
    check: Any = all_identical
    for num_items in range(1, 7):
        places: dict[str, list[int]] = {}
        for block in blocks(ITEMS[:num_items], rounds=2):
            (run,) = measure_block(fake_workload, journal.arm(BASELINE), [journal.arm("x")], block, check)
            places.setdefault(run.prompt_id, []).append(run.order)
        assert all(sorted(orders) == [0, 1] for orders in places.values())


def test_when_the_time_is_up_later_items_are_left_out_and_every_block_is_whole(
    make_contest: Callable[..., Contest], journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = ScriptedEngine(steady(1.5)).install(monkeypatch)
    seconds = [3.0]

    def pass_time(measured: int) -> None:
        seconds[0] -= 1.0

    engine.before_block = pass_time
    limit = TimeLimit(lambda: seconds[0], least_items=2)
    log = tmp_path / "runs.jsonl"
    contest = make_contest(["a", "b"], limit=limit, log=log)
    runs = run(contest)
    assert pairs(runs) == [(arm, item.id, 0) for item in ITEMS[:3] for arm in ("a", "b")]
    seconds[0] = -1.0
    assert pairs(run(make_contest(["a", "b"], limit=limit, log=log))) == pairs(runs)
    seconds[0] = 100.0
    assert len(run(make_contest(["a", "b"], limit=limit, log=log))) == 2 * len(ITEMS)


def test_an_arm_that_the_log_lacks_is_compared_on_the_prompts_that_it_had_time_for(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    log = tmp_path / "runs.jsonl"
    run(make_contest(["a"], log=log))
    limit = TimeLimit(lambda: -1.0, least_items=2)
    runs = run(make_contest(["a", "b"], log=log, limit=limit))
    assert len(runs) == len(ITEMS) + 2
    assert pairs(on_common_prompts(runs)) == [(arm, item.id, 0) for item in ITEMS[:2] for arm in ("a", "b")]
    assert on_common_prompts([]) == []


def test_the_fewest_items_are_measured_whatever_the_time(
    make_contest: Callable[..., Contest], monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedEngine(steady(1.5)).install(monkeypatch)
    runs = run(make_contest(["a"], limit=TimeLimit(lambda: -1.0, least_items=4)))
    assert [run.prompt_id for run in runs] == [item.id for item in ITEMS[:4]]

"""What a request refuses, wherever its values come from, and what it settles itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfspec_tune.arguments import bench_request, search_request
from selfspec_tune.draft import PolicyKind
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import (
    BenchRequest,
    CompareRequest,
    DraftOptions,
    ExportRequest,
    PolicyChoice,
    PromptOptions,
    RuntimeBenchRequest,
    RuntimeName,
    StrategyName,
    SweepKind,
    SweepRequest,
)


def test_auto_searches_two_policies_and_a_threshold_asks_for_the_one_that_has_one() -> None:
    assert DraftOptions().policy_kinds == (PolicyKind.COST_AWARE, PolicyKind.THRESHOLD)
    assert DraftOptions(exit_threshold=0.5).policy_kinds == (PolicyKind.THRESHOLD,)
    assert DraftOptions("adaptive", exit_threshold=0.5).policy_kinds == (PolicyKind.ADAPTIVE,)
    assert {choice.value for choice in PolicyChoice} == {"auto", *(kind.value for kind in PolicyKind)}
    for policy in ("cost-aware", "fixed"):
        with pytest.raises(UsageError, match=f"the {policy} policy has no threshold"):
            DraftOptions(policy, exit_threshold=0.5)


@pytest.mark.parametrize(
    "options", [{"exit_threshold": float("nan")}, {"exit_threshold": 1.5}, {"max_draft_tokens": 0}]
)
def test_a_draft_that_means_nothing_is_refused_by_the_library_too(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        DraftOptions(policy="threshold", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": float("nan")},
        {"top_k": 2.5},
        {"seed": 10**30},
        {"max_new_tokens": float("inf")},
        {"num_prompts": "all"},
        {"tasks": 3},
        {"source": 5},
        {"template": None},
    ],
)
def test_prompt_options_that_mean_nothing_are_refused_wherever_they_come_from(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        PromptOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [-0.0, 0.0, 1e-320, 1e-40, 9e-6])
def test_a_temperature_of_all_but_nothing_is_none(temperature: float) -> None:
    assert str(PromptOptions(temperature=temperature).temperature) == "0.0"


@pytest.mark.parametrize(
    ("kind", "values"),
    [("temperature", (0.0, 1e-40)), ("temperature", (0.0, 101.0)), ("max-draft", (1, 2000))],
)
def test_a_sweep_over_what_means_nothing_is_refused(kind: str, values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"`sweep_values` .*expected"):
        SweepRequest(BenchRequest(), SweepKind(kind), values)


def test_rounds_are_bounded() -> None:
    with pytest.raises(UsageError, match="`rounds` 1000000: expected at least 1, up to 1000"):
        BenchRequest(rounds=10**6)


def test_answers_longer_than_a_runtime_s_context_are_refused_before_it_loads() -> None:
    options = PromptOptions(max_new_tokens=4096)
    with pytest.raises(UsageError, match=r"`max_new_tokens` 4096: the runtime's context has 4096 positions"):
        RuntimeBenchRequest(Path("draft"), RuntimeName.LLAMACPP, options)
    RuntimeBenchRequest(Path("draft"), RuntimeName.TRANSFORMERS, options)


def test_a_request_looks_at_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[object] = []
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "readlink", "scandir", "open", "mkdir"):
            patch.setattr(f"os.{name}", lambda *what, **_: touched.append(what))
        request = search_request(model="m", prompts="p.jsonl", out=Path("s"), start_from=["s"], trials=1)
        CompareRequest(request, (StrategyName.STAGED, StrategyName.TPE))
        bench_request(skip_files=[Path("s/skip.json")], skip_sets=["s"], log=Path("s/bench.json"))
        ExportRequest(Path("s"), "gguf", Path("d"), gguf=Path("m.gguf"))
    assert touched == []


def test_files_say_what_is_not_as_usual_and_look_as_before_where_all_is() -> None:
    assert list(PromptOptions().recorded) == ["temperature", "top_p", "top_k"]
    asked = PromptOptions(temperature=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2)
    expected = {"temperature": 0.5, "top_p": 1.0, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}
    assert asked.recorded == asked.in_force == expected
    greedy = PromptOptions(top_k=3, min_p=0.1, repetition_penalty=1.2)
    assert greedy.in_force == {"repetition_penalty": 1.2}
    assert str(greedy.about_idle).startswith("`top_k` 3 and `min_p` 0.1: without effect")

"""``bench --parts``: what a draft is made of, each part alone, and its other policies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfspec_tune.bench import run_bench
from selfspec_tune.bench.competitors import POLICIES, Part, distinct, parts_of
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.report.bench import print_bench
from selfspec_tune.report.text import headline_method
from selfspec_tune.requests import BenchRequest, SweepKind, SweepRequest
from selfspec_tune.results import BenchResult
from tests.runs import sources_of
from tests.search_kit import Listener, prompt_file, read_rows

SOME, NONE = SkipSet(4, (1, 2), (3,)), SkipSet.empty(4)
INT4 = DraftPrecision.uniform(4, Precision.INT4, Precision.INT8)
PRIOR = AcceptancePrior(0.7, (0.5,) * 10)
COST_AWARE = DraftPolicy(PolicyKind.COST_AWARE, max_draft_tokens=16, prior=PRIOR)
LOOKUP = NgramLookup()
WHOLE = Draft(SOME, COST_AWARE, INT4, vocabulary=64, sources=(LOOKUP,))
PARTS = ("skips-alone", "copies-alone", "copies-and-skips", "copies-and-lookup", "lookup-alone")
RULES = ("policy-fixed", "policy-threshold", "policy-adaptive")


def parts(main: Draft) -> dict[str, Draft]:
    return {part.name: part.draft for part in distinct(parts_of(main), [main])}


def test_a_draft_of_everything_has_every_part_and_every_other_policy() -> None:
    found = parts(WHOLE)
    assert tuple(found) == (*PARTS, *RULES)
    threshold = DraftPolicy(PolicyKind.THRESHOLD, 6, 0.6)
    assert found["skips-alone"] == Draft(SOME, threshold, vocabulary=64)
    assert found["copies-alone"] == Draft(NONE, COST_AWARE, INT4, vocabulary=64)
    assert found["copies-and-skips"] == Draft(SOME, COST_AWARE, INT4, vocabulary=64)
    assert found["copies-and-lookup"] == Draft(NONE, COST_AWARE, INT4, vocabulary=64, sources=(LOOKUP,))
    assert found["lookup-alone"] == Draft(NONE, COST_AWARE, sources=(LOOKUP,), model_drafts=False)
    for name, kind in zip(RULES, ("fixed", "threshold", "adaptive"), strict=True):
        assert found[name] == Draft(SOME, DraftPolicy(PolicyKind(kind), 6, 0.6), INT4, 64, (LOOKUP,))


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        (Draft(SOME), ()),  # skips alone is the draft itself
        (Draft(SOME, COST_AWARE), ("skips-alone",)),
        (Draft(SOME, COST_AWARE, sources=(LOOKUP,)), ("skips-alone", "lookup-alone")),
        (Draft(SOME, COST_AWARE, INT4), ("skips-alone", "copies-alone")),
        (Draft(NONE, COST_AWARE, INT4), ()),
        (Draft(NONE, COST_AWARE, INT4, sources=(LOOKUP,)), ("copies-alone", "lookup-alone")),
        (Draft(NONE, COST_AWARE, sources=(LOOKUP,), model_drafts=False), ()),
    ],
)
def test_what_a_draft_does_without_has_no_part(main: Draft, expected: tuple[str, ...]) -> None:
    assert tuple(name for name in parts(main) if name in PARTS) == expected


def test_fewer_experts_are_a_part_and_none_of_the_other_parts() -> None:
    found = parts(Draft(SOME, COST_AWARE, INT4, sources=(LOOKUP,), experts=2))
    assert found["experts-alone"] == Draft(NONE, COST_AWARE, experts=2)
    assert found["skips-alone"].experts is found["copies-alone"].experts is None
    assert found["copies-and-skips"].experts == found["copies-and-lookup"].experts == 2


def test_the_drafts_own_threshold_is_kept_and_its_longest_draft_is_bounded() -> None:
    tuned = DraftPolicy(PolicyKind.THRESHOLD, 10, 0.9)
    found = parts(Draft(SOME, tuned, sources=(LOOKUP,)))
    assert found["skips-alone"].policy == tuned
    assert found["policy-adaptive"].policy == DraftPolicy(PolicyKind.ADAPTIVE, 6, 0.9)
    assert found["policy-cost-aware"].policy == DraftPolicy(PolicyKind.COST_AWARE, 10)
    assert "policy-threshold" not in found
    short = parts(Draft(SOME, DraftPolicy(PolicyKind.FIXED, 3, 0.0), sources=(LOOKUP,)))
    assert short["policy-threshold"].policy == DraftPolicy(PolicyKind.THRESHOLD, 3, 0.6)


def test_equal_drafts_are_measured_once() -> None:
    one, same = Part("one", "", Draft(SOME)), Part("same", "", Draft(SOME))
    assert list(distinct([one, same], [])) == [one]
    assert list(distinct([one, same], [Draft(SOME)])) == []


def test_every_policy_has_a_name() -> None:
    assert set(POLICIES) == {*RULES, "policy-cost-aware"}


def test_parts_do_not_take_part_in_a_sweep() -> None:
    with pytest.raises(UsageError, match="`parts` run beside one bench") as caught:
        SweepRequest(BenchRequest(parts=True), SweepKind.MAX_DRAFT, (1, 2))
    assert caught.value.exit_code == 2


# Measured


@pytest.fixture
def bench(tiny_llama_dir: Path, tmp_path: Path) -> Any:
    """A bench of two prompts and eight new tokens on the tiny model, drafting with all there is."""
    source = prompt_file(tmp_path / "set.jsonl", 4)

    def run(*skip_sets: str, listener: Listener | None = None, **fields: Any) -> BenchResult:
        options = {"name": str(tiny_llama_dir), "dtype": "float32", "device": "cpu"}
        prompts = {"source": source, "num_prompts": 2, "max_new_tokens": 8, "template": "raw"}
        drafting = {"ngram": True, "precision": "int8"}
        values = {"reference_prompts": 1, "parts": True, "uniform_and_random": False, **fields}
        request = BenchRequest(
            skip_sets=skip_sets,
            model_overrides=tuple(options.items()),
            prompt_overrides=tuple(prompts.items()),
            draft_overrides=tuple(drafting.items()),
            **values,
        )
        return run_bench(request, listener or Listener())

    return run


def names(result: BenchResult) -> list[str]:
    return [method.name for method in result.methods]


def test_the_parts_follow_the_skip_sets_and_are_lossless(bench: Any) -> None:
    result = bench("attn 1,2", "mlp 2")
    measured = [*PARTS, "policy-fixed", "policy-adaptive", "policy-cost-aware"]
    assert names(result) == ["autoregressive", *["self-speculative"] * 2, *measured, "hf-generate"]
    headline = headline_method(result)
    assert headline is not None
    assert headline.id == result.methods[1].id
    for method in result.methods[:-1]:
        assert (method.num_prompts, method.lossless.identical) == (2, 2)
    skips, copies = result.methods[3:5]
    assert skips.id.startswith("skips-alone:")
    assert skips.skip is not None
    assert skips.skip.attention == [1, 2]
    assert copies.skip is not None
    assert copies.skip.attention == []
    lookup = next(run for run in result.runs if run.method.startswith("lookup-alone:"))
    assert "model" not in sources_of(lookup.candidate.rounds)


def test_the_table_names_every_part_and_says_what_it_is(bench: Any) -> None:
    stream = io.StringIO()
    print_bench(Console(file=stream, width=100, color_system=None, highlight=False), bench("attn 1,2"))
    shown = " ".join(stream.getvalue().split())
    assert "copies-and-lookup: the draft with nothing skipped; threshold 6, exit 0.6." in shown
    assert "lookup-alone: the lookup alone (n-gram 1-8, 24 tokens); threshold 6, exit 0.6." in shown
    assert "policy-cost-aware: the draft under another policy; cost-aware 6." in shown


def test_a_log_without_parts_goes_on_with_them(bench: Any, tmp_path: Path) -> None:
    log = tmp_path / "bench.runs.jsonl"
    first = bench("attn 1,2", parts=False, log=log)
    listener = Listener()
    result = bench("attn 1,2", log=log, listener=listener)
    assert any("8 methods are new to the log" in notice for notice in listener.notices)
    kept = [run for run in result.runs if run.session == 1]
    assert kept == first.runs
    rows = len(read_rows(log))
    again = bench("attn 1,2", log=log)
    assert (again.runs, len(read_rows(log))) == (result.runs, rows)


def test_a_log_may_hold_the_parts_of_several_drafts(bench: Any, tmp_path: Path) -> None:
    log = tmp_path / "bench.runs.jsonl"
    bench("attn 1,2", log=log)
    assert names(bench("attn 3", log=log))[2] == "skips-alone"

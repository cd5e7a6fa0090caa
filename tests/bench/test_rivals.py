"""``bench --rivals``: who competes, under which policy, and what happens to those that cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import run as run_module
from selfspec_tune.bench import run_bench
from selfspec_tune.bench.competitors import SELF_SD, SWIFT, exit_layer, system_of
from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.draft.dialects import DIALECTS, to_dialect
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import RawGeneration
from selfspec_tune.errors import RivalError, UnknownModelError, UsageError
from selfspec_tune.measure import arms, rivals
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.requests import BenchRequest, SweepKind, SweepRequest
from selfspec_tune.results import BenchResult, MethodResult
from tests import kit
from tests.search_kit import Listener, prompt_file, read_rows

SOME = SkipSet(4, (1, 2), (3,))
ALL = ["autoregressive", "self-speculative", "hf-generate", "hf-prompt-lookup", "hf-early-exit"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts") / "set.jsonl", 8)


@pytest.fixture
def bench(tiny_llama_dir: Path, source: str) -> Any:
    """A bench with rivals of three prompts and ten new tokens on the tiny model."""

    def run(*skip_sets: str, model: Path = tiny_llama_dir, listener: Listener | None = None, **fields: Any) -> Any:
        options = {"name": str(model), "dtype": "float32", "device": "cpu"}
        prompts = {"source": source, "num_prompts": 3, "max_new_tokens": 10, "template": "raw"}
        values = {"reference_prompts": 1, "rivals": True, **fields}
        request = BenchRequest(
            skip_sets=skip_sets,
            model_overrides=tuple(options.items()),
            prompt_overrides=tuple(prompts.items()),
            **values,
        )
        return run_bench(request, listener or Listener())

    return run


def names(methods: Sequence[MethodResult]) -> list[str]:
    return [method.name for method in methods]


def row(result: BenchResult, name: str) -> MethodResult:
    return next(method for method in result.methods if method.name == name)


def test_every_rival_runs_on_every_prompt_without_loss(bench: Any, tmp_path: Path) -> None:
    drafter = kit.tiny_llama(tmp_path, layers=2, seed=1)
    result = bench("attn 2,3 · mlp 2-3", draft_model=str(drafter), early_exit=2)
    assert names(result.methods) == [*ALL, "hf-draft-model", "uniform", "random"]
    for method in result.methods[:-1]:
        assert (method.num_prompts, method.lossless.identical, method.unavailable) == (3, 3, None)
        assert method.end_to_end_speedup is not None
    assert row(result, "random").num_prompts == 1
    for name in ("hf-prompt-lookup", "hf-early-exit", "hf-draft-model"):
        method = row(result, name)
        assert method.mean_accepted_tokens is not None
        assert method.draft_cost_fraction is method.verify_cost_fraction is None
    assert row(result, "hf-early-exit").acceptance_rate is not None
    assert "first 2 of 4 layers" in row(result, "hf-early-exit").description
    assert result.baseline_vs_generate is not None


def test_without_rivals_nothing_of_theirs_runs(bench: Any) -> None:
    assert names(bench("attn 1", rivals=False, uniform_and_random=False).methods) == [
        "autoregressive",
        "self-speculative",
        "hf-generate",
    ]


def test_uniform_skipping_is_a_rival_even_without_references(bench: Any) -> None:
    result = bench("attn 1,3 · mlp 2", uniform_and_random=False)
    assert names(result.methods) == [*ALL, "uniform"]
    uniform = row(result, "uniform")
    assert uniform.skip is not None
    assert (len(uniform.skip.attention), len(uniform.skip.mlp), uniform.num_prompts) == (2, 1, 3)


def test_where_nothing_is_skipped_the_uniform_row_says_so(bench: Any) -> None:
    uniform = row(bench("none"), "uniform")
    assert "nothing to spread" in str(uniform.unavailable)
    assert (uniform.num_runs, uniform.tokens_per_second, uniform.end_to_end_speedup) == (0, None, None)


def test_a_rival_that_the_model_cannot_do_says_why_and_the_bench_goes_on(bench: Any, tmp_path: Path) -> None:
    listener = Listener()
    result = bench("attn 1", model=kit.tiny_of_type(tmp_path, "gpt2", layers=3), listener=listener)
    method = row(result, "hf-early-exit")
    assert "runs all of its layers" in str(method.unavailable)
    assert (method.num_prompts, method.num_runs, method.tokens_per_second) == (0, 0, None)
    assert any(notice.startswith("hf-early-exit is left out: ") for notice in listener.notices)
    assert row(result, "hf-prompt-lookup").lossless.identical == 3
    again = BenchResult.from_dict(json.loads(json.dumps(result.to_dict())), origin="here")
    assert row(again, "hf-early-exit").unavailable == method.unavailable


def test_a_draft_model_that_cannot_be_loaded_says_why_in_its_row(bench: Any, tmp_path: Path) -> None:
    result = bench("attn 1", draft_model=str(kit.tiny_of_type(tmp_path, "mamba")))
    assert row(result, "hf-draft-model").unavailable
    assert row(result, "self-speculative").num_prompts == 3


def test_a_draft_model_that_does_not_exist_ends_the_bench(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError) as caught:
        bench("attn 1", draft_model=str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 2


def test_model_generate_that_fails_withholds_the_verdict(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(workload: Any, item: WorkItem, loaded: Any) -> RawGeneration:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("selfspec_tune.measure.arms.hf_generate", fail)
    result = bench("attn 1")
    assert row(result, "hf-generate").unavailable == "RuntimeError: no such thing"
    assert result.verdict == "withheld"
    assert "our baseline is unchecked" in result.withheld_because[0]


def test_a_rival_that_fails_in_the_middle_is_dropped_with_its_records(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = rivals.hf_generate

    def fail_late(workload: Any, item: WorkItem, loaded: Any, **how: Any) -> RawGeneration:
        if "prompt_lookup_num_tokens" in how:
            calls.append(1)
            if len(calls) == 4:  # the warm-up, two prompts, and then
                raise RuntimeError("out of memory")
        return decode(workload, item, loaded, **how)

    monkeypatch.setattr(rivals, "hf_generate", fail_late)
    result = bench("attn 1")
    assert len(calls) == 4
    assert row(result, "hf-prompt-lookup").unavailable == "RuntimeError: out of memory"
    assert {run.method for run in result.runs}.isdisjoint({"hf-prompt-lookup"})
    for name in ("self-speculative", "hf-generate", "hf-early-exit"):
        assert row(result, name).num_runs == 3


def test_a_rival_that_cannot_run_is_noted_in_the_log_and_tried_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decode, broken = rivals.hf_generate, [True]

    def fail(workload: Any, item: WorkItem, loaded: Any, **how: Any) -> RawGeneration:
        if "prompt_lookup_num_tokens" in how and broken:
            raise RuntimeError("out of memory")
        return decode(workload, item, loaded, **how)

    monkeypatch.setattr(rivals, "hf_generate", fail)
    log = tmp_path / "bench.runs.jsonl"
    first = bench("attn 1", log=log)
    noted = [row for row in read_rows(log) if "left_out" in row]
    assert noted == [{"left_out": "hf-prompt-lookup", "reason": "RuntimeError: out of memory", "session": 1}]
    listener = Listener()
    again = bench("attn 1", log=log, listener=listener)
    assert again.runs == first.runs
    assert row(again, "hf-prompt-lookup").unavailable == "RuntimeError: out of memory"
    assert any("is finished but for hf-prompt-lookup" in notice for notice in listener.notices)
    assert not any("resuming" in notice for notice in listener.notices)
    assert [session["session"] for session in again.provenance["sessions"]] == [1]
    broken.clear()
    mended = row(bench("attn 1", log=log), "hf-prompt-lookup")
    assert (mended.unavailable, mended.num_prompts, mended.lossless.identical) == (None, 3, 3)


def test_rivals_do_not_take_part_in_a_sweep() -> None:
    with pytest.raises(UsageError, match="`rivals` run beside one bench"):
        SweepRequest(BenchRequest(rivals=True), SweepKind.MAX_DRAFT, (1, 2))


# Policies of other systems


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A file with one entry as Self-SD keys it and one as SWIFT does."""
    file = tmp_path / "skip_layers.json"
    entries = to_dialect(SOME, "self-sd", model_name="tiny-1b")
    file.write_text(json.dumps(entries | to_dialect(SOME, "swift", model_name="tiny-1b", task="cnndm")))
    return file


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> list[Draft]:
    """Every draft that an arm was made of."""
    made: list[Draft] = []
    original = run_module.self_speculative_arm

    def spy(workload: Any, draft: Draft, *names: Any) -> Any:
        made.append(draft)
        return original(workload, draft, *names)

    for module in (arms, run_module):
        monkeypatch.setattr(module, "self_speculative_arm", spy)
    return made


def test_sets_of_other_systems_draft_by_their_own_policies(bench: Any, theirs: Path, drafts: list[Draft]) -> None:
    result = bench("attn 1", f"{theirs}#tiny-1b", f"{theirs}#tiny-1b_cnndm", uniform_and_random=False)
    assert names(result.methods)[:4] == ["autoregressive", "self-speculative", "self-sd", "swift"]
    assert [draft.policy for draft in drafts[1:3]] == [SELF_SD.policy, SWIFT.policy]
    for name, system in (("self-sd", SELF_SD), ("swift", SWIFT)):
        method = row(result, name)
        assert method.skip is not None
        assert method.skip.attention == [1, 2]
        assert (method.lossless.identical, method.description) == (3, system.description)
        assert method.id.startswith(f"{name}:")


def test_a_set_of_another_system_alone_is_what_the_bench_is_about(bench: Any, theirs: Path) -> None:
    result = bench(f"{theirs}#tiny-1b", uniform_and_random=False)
    assert names(result.methods) == [*ALL, "uniform"]
    assert result.methods[1].description == SELF_SD.description


def test_our_own_set_comes_first_whatever_the_order(bench: Any, theirs: Path, drafts: list[Draft]) -> None:
    result = bench(f"{theirs}#tiny-1b_cnndm", "mlp 1")
    assert names(result.methods)[1:3] == ["self-speculative", "swift"]
    assert result.methods[1].skip is not None
    assert result.methods[1].skip.mlp == [1]
    assert drafts[1].policy.max_draft_tokens < SWIFT.policy.max_draft_tokens


def test_without_rivals_their_sets_draft_by_our_policy(bench: Any, theirs: Path, drafts: list[Draft]) -> None:
    result = bench(f"{theirs}#tiny-1b", rivals=False, uniform_and_random=False)
    assert names(result.methods)[1] == "self-speculative"
    assert drafts[0] == Draft(SOME)


def test_only_self_sd_and_swift_have_a_policy_of_their_own_here() -> None:
    known = {dialect.value for dialect in DIALECTS if system_of(dialect)}
    assert known == {"self-sd", "swift"}
    assert system_of(None) is system_of("skip-config") is None
    assert (SELF_SD.policy.kind, SELF_SD.policy.max_draft_tokens) == (PolicyKind.ADAPTIVE, 12)
    assert (SWIFT.policy.kind, SWIFT.policy.exit_threshold) == (PolicyKind.THRESHOLD, 0.8)


# What is asked for


def test_a_third_of_the_layers_draft_unless_told_otherwise() -> None:
    assert [exit_layer(None, depth) for depth in (1, 2, 4, 28, 40)] == [1, 1, 1, 9, 13]
    assert exit_layer(5, 6) == 5
    for asked in (0, 6, 60):
        with pytest.raises(UsageError, match=f"`early_exit` {asked}: the model has 6 layers; expected 1 to 5"):
            exit_layer(asked, 6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"early_exit": 0, "rivals": True}, "`early_exit` 0: expected at least 1"),
        ({"early_exit": 3}, "`early_exit` 3: it sets up a rival; add `rivals`"),
        ({"draft_model": "tiny"}, "`draft_model` tiny: it sets up a rival; add `rivals`"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        BenchRequest(**fields)
    assert caught.value.exit_code == 2


def test_an_unavailable_rival_has_no_figures() -> None:
    from selfspec_tune.results.metrics import unavailable_method

    plain = unavailable_method("x", "x", "it cannot").to_dict()
    with pytest.raises(ValueError, match="has no runs and no speedup"):
        MethodResult.model_validate(plain | {"num_runs": 2})
    assert str(RivalError("x", "it cannot")) == "it cannot"

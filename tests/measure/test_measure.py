"""Interleaved blocks, the losslessness check, the numeric floor, and the arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Round
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, RawGeneration, Runner, choose_runner
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.errors import PromptError
from selfspec_tune.measure.arms import (
    BASELINE,
    GENERATE,
    NULL,
    SELF_SPECULATIVE,
    Arm,
    autoregressive_arm,
    generate_arm,
    self_speculative_arm,
)
from selfspec_tune.measure.lossless import FLOAT32_FLOOR, LosslessCheck, LosslessVerdict, numeric_floor, rounding_bound
from selfspec_tune.measure.pairs import Block, arm_run, blocks, measure_block, ordered, turned
from selfspec_tune.measure.workload import WorkItem, Workload, open_workload
from selfspec_tune.plans import registry
from selfspec_tune.plans.families import llama
from selfspec_tune.prompts import Prompt
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import ModelOptions, PromptOptions
from tests.engine_kit import Altered, TableRunner, chain, load, of_type, prompt_tokens

SOME = Draft(SkipSet(4, (1, 3), (2,)), DraftPolicy(PolicyKind.FIXED, 3))


def _item(
    tokens: Sequence[int], max_new_tokens: int = 8, eos: frozenset[int] = frozenset(), name: str = "p"
) -> WorkItem:
    return WorkItem(name, Prompt(name, "code", f"text of {name}"), tuple(tokens), Limits(max_new_tokens, eos))


@pytest.fixture
def workload(tiny_llama_dir: Path) -> Workload:
    loaded = load(tiny_llama_dir)
    return Workload(loaded, choose_runner(loaded), PromptOptions(max_new_tokens=12, seed=3))


def _scripted(arm_id: str, log: list[str], tokens: Sequence[int] = (5, 6, 7)) -> Arm:
    def decode(item: WorkItem) -> RawGeneration:
        log.append(arm_id)
        return RawGeneration(
            tokens=list(tokens), rounds=[Round(2, 1)], prefill_seconds=0.5, draft_seconds=0.1, decode_seconds=0.25
        )

    return Arm(arm_id, arm_id, decode)


class _Agreeable(LosslessCheck):
    def __init__(self) -> None:
        super().__init__(TableRunner(chain(8, 1.0)), 0.0)


# -- blocks ------------------------------------------------------------------------------------------------------


def test_every_item_gets_a_block_in_every_round() -> None:
    items = [_item([1], name=name) for name in "abc"]
    made = list(blocks(items, rounds=2))
    assert [(block.item.id, block.round, block.index) for block in made] == [
        ("a", 0, 0),
        ("b", 0, 1),
        ("c", 0, 2),
        ("a", 1, 3),
        ("b", 1, 4),
        ("c", 1, 5),
    ]
    assert len(list(blocks(items))) == 3


def test_two_arms_take_turns_at_going_first() -> None:
    first, second = _scripted("first", []), _scripted("second", [])
    leaders = [turned([first, second], index)[0].id for index in range(8)]
    assert Counter(leaders) == {"first": 4, "second": 4}
    assert Counter(leaders[:4]) == {"first": 2, "second": 2}


@pytest.mark.parametrize("num_arms", [2, 3, 5])
def test_over_two_circles_every_arm_takes_every_place_and_precedes_every_other_as_often(num_arms: int) -> None:
    arms = [_scripted(str(number), []) for number in range(num_arms)]
    places: Counter[tuple[str, int]] = Counter()
    before: Counter[tuple[str, str]] = Counter()
    for index in range(2 * num_arms):
        order = [arm.id for arm in turned(arms, index)]
        assert sorted(order) == sorted(arm.id for arm in arms)
        places.update((arm, place) for place, arm in enumerate(order))
        before.update(combinations(order, 2))
    assert set(places.values()) == {2}
    assert set(before.values()) == {num_arms}


@pytest.mark.parametrize("index", range(6))
def test_a_block_decodes_every_arm_once_and_records_the_order(workload: Workload, index: int) -> None:
    log: list[str] = []
    arms = [_scripted(name, log) for name in ("plain", "one", "two")]
    runs = measure_block(workload, arms[0], arms[1:], Block(_item([4, 5]), 2, index, index), _Agreeable())
    assert log == [arm.id for arm in ordered(arms, Block(_item([4, 5]), 2, index, index))]
    assert [run.method for run in runs] == ["one", "two"]
    for run in runs:
        assert (run.order, run.baseline_order) == (log.index(run.method), log.index("plain"))
        assert (run.prompt_id, run.task, run.round, run.prompt_tokens) == ("p", "code", 2, 2)
        assert run.prompt_hash == Prompt("other", "other", "text of p").hash
        assert run.lossless == "identical"
        assert run.baseline == run.candidate == arm_run(arms[0].decode(_item([4])))


def test_every_arm_of_a_block_draws_the_same_random_numbers(workload: Workload) -> None:
    drawn: list[float] = []

    def decode(item: WorkItem) -> RawGeneration:
        drawn.append(workload.sampler.uniform())
        return RawGeneration(tokens=[5])

    arms = [Arm(name, name, decode) for name in "abc"]
    for index in range(2):
        measure_block(workload, arms[0], arms[1:], Block(_item([4]), 0, index, index), _Agreeable())
    assert len(set(drawn[:3])) == len(set(drawn[3:])) == 1
    assert drawn[0] != drawn[3]


def test_a_record_keeps_the_raw_numbers_of_a_generation() -> None:
    generation = RawGeneration([1, 2, 3, 4], [Round(3, 2, "ngram")], 0.1, 0.2, 0.3, 0.6, "eos")
    run = arm_run(generation)
    assert (run.num_tokens, run.rounds, run.stop_reason) == (4, (Round(3, 2, "ngram"),), "eos")
    assert (run.prefill_seconds, run.draft_seconds, run.verify_seconds, run.decode_seconds) == (0.1, 0.2, 0.3, 0.6)
    assert run.total_seconds == generation.total_seconds


def test_a_block_of_a_real_model_is_lossless_in_every_arm(workload: Workload) -> None:
    baseline = autoregressive_arm(workload)
    candidates = [
        autoregressive_arm(workload, NULL),
        self_speculative_arm(workload, SOME),
        self_speculative_arm(workload, Draft(SkipSet.empty(4)), "self-speculative:empty"),
        generate_arm(workload),
    ]
    assert [arm.name for arm in (baseline, *candidates)] == [
        BASELINE,
        NULL,
        SELF_SPECULATIVE,
        SELF_SPECULATIVE,
        GENERATE,
    ]
    check = LosslessCheck(workload.runner, FLOAT32_FLOOR)
    items = [_item(prompt_tokens(9, seed), 12, frozenset({2}), name=str(seed)) for seed in range(3)]
    runs = [run for block in blocks(items) for run in measure_block(workload, baseline, candidates, block, check)]
    assert [run.method for run in runs] == [arm.id for arm in candidates] * 3
    assert {run.lossless for run in runs} == {"identical"}
    assert all(run.candidate.num_tokens == run.baseline.num_tokens for run in runs)
    assert all(run.candidate.stop_reason == run.baseline.stop_reason for run in runs)
    assert {bool(run.candidate.rounds) for run in runs if run.method in (NULL, GENERATE)} == {False}


def test_the_baselines_text_is_kept_beside_its_runs(workload: Workload) -> None:
    log: list[str] = []
    runs = measure_block(workload, _scripted("a", log), [_scripted("b", log)], Block(_item([4]), 0, 0, 0), _Agreeable())
    assert runs[0].to_dict()["text"] == workload.loaded.tokenizer.decode([5, 6, 7])


def test_a_draft_reads_as_one_line() -> None:
    assert SOME.describe() == "attn 1,3 · mlp 2 (fixed 3, exit 0.6)"
    assert Draft(SkipSet.empty(4), vocabulary=99).describe() == "none (threshold 6, exit 0.6, vocabulary 99)"


# -- losslessness ------------------------------------------------------------------------------------------------


@pytest.fixture
def near_ties() -> TableRunner:
    """After token 3 the target wants 4, all but as much 5 (by .05), less so 6 (by .5)."""
    table = chain(8, 9.0)
    table[:, 3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 8.95, 8.5, 0.0])
    return TableRunner(table)


def test_the_same_tokens_are_identical_and_cost_no_look_at_logits(near_ties: TableRunner) -> None:
    check = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)
    assert check(_item([0]), [1, 2, 3, 4], [1, 2, 3, 4]) == LosslessVerdict("identical")
    assert near_ties.tokens == []


def test_a_first_difference_within_the_floor_is_a_tie(near_ties: TableRunner) -> None:
    verdict = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)(_item([0]), [1, 2, 3, 4, 5], [1, 2, 3, 5, 6])
    assert (verdict.status, verdict.first_difference) == ("numerical_tie", 3)
    assert verdict.logit_gap == pytest.approx(0.05, abs=1e-5)
    assert near_ties.tokens == [0, 1, 2, 3]


def test_a_first_difference_beyond_the_floor_is_a_mismatch(near_ties: TableRunner) -> None:
    verdict = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)(_item([0]), [1, 2, 3, 4, 5], [1, 2, 3, 6, 7])
    assert (verdict.status, verdict.first_difference) == ("mismatch", 3)
    assert verdict.logit_gap == pytest.approx(0.5, abs=1e-5)


def test_two_tokens_that_tie_below_the_top_are_a_mismatch(near_ties: TableRunner) -> None:
    """0 and 7 have the same logit, but the target wants neither."""
    verdict = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)(_item([0]), [1, 2, 3, 0], [1, 2, 3, 7])
    assert verdict.status == "mismatch"
    assert verdict.logit_gap == pytest.approx(9.0)


def test_a_tie_is_the_same_whichever_arm_took_which_token(near_ties: TableRunner) -> None:
    check = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)
    one = check(_item([0]), [1, 2, 3, 4], [1, 2, 3, 5])
    other = check(_item([0]), [1, 2, 3, 5], [1, 2, 3, 4])
    assert one == other


@pytest.mark.parametrize(
    ("baseline", "candidate", "first"),
    [([1, 2, 3], [1, 2, 3, 4], 3), ([1, 2, 3, 4], [1, 2, 3], 3), ([1], [], 0)],
)
def test_an_output_that_only_begins_the_other_is_a_mismatch(
    near_ties: TableRunner, baseline: list[int], candidate: list[int], first: int
) -> None:
    assert LosslessCheck(near_ties, 1e9)(_item([0]), baseline, candidate) == LosslessVerdict("mismatch", first)


def test_a_difference_at_the_first_token_looks_at_the_prompt_alone(near_ties: TableRunner) -> None:
    verdict = LosslessCheck(near_ties, 0.1, dtype=torch.bfloat16)(_item([2, 3]), [4, 5], [5, 6])
    assert (verdict.status, verdict.first_difference) == ("numerical_tie", 0)
    assert near_ties.tokens == [2, 3]


@pytest.mark.parametrize(("dtype", "status"), [(torch.bfloat16, "numerical_tie"), (torch.float32, "mismatch")])
def test_a_floor_counts_no_further_than_the_dtype_rounds(
    near_ties: TableRunner, dtype: torch.dtype, status: str
) -> None:
    """A runner whose own verification is off by anything does not make anything a tie."""
    check = LosslessCheck(near_ties, 1e9, dtype=dtype)
    assert check(_item([0]), [1, 2, 3, 4], [1, 2, 3, 5]).status == status  # 0.05 below a logit of 9
    assert check(_item([0]), [1, 2, 3, 4], [1, 2, 3, 6]).status == "mismatch"  # 0.5 below


def test_a_floor_that_is_no_number_makes_nothing_a_tie(near_ties: TableRunner) -> None:
    check = LosslessCheck(near_ties, float("nan"), dtype=torch.bfloat16)
    assert check(_item([0]), [1, 2, 3, 4], [1, 2, 3, 5]).status == "mismatch"


def test_rounding_is_a_few_steps_of_the_largest_logit() -> None:
    assert rounding_bound(torch.bfloat16, 32.0) == 1.0
    assert rounding_bound(torch.float16, 32.0) == 0.25
    assert rounding_bound(torch.float32, 10.0) == FLOAT32_FLOOR
    assert rounding_bound(torch.float32, 100.0) < 1e-3


def test_an_engine_that_computes_another_model_cannot_call_itself_a_tie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that lacks the growth of queries of this architecture: model.generate tells."""
    monkeypatch.setitem(registry.FAMILIES, "ministral3", llama.llama)
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    loaded = of_type(tmp_path, "ministral3", head_dim=16, rope_parameters=rope | {"llama_4_scaling_beta": 0.5})
    workload = Workload(loaded, FastRunner(loaded), PromptOptions(max_new_tokens=24))
    check = LosslessCheck(workload.runner, FLOAT32_FLOOR)
    items = [_item(prompt_tokens(120, seed), 24, name=str(seed)) for seed in range(3)]
    arms = autoregressive_arm(workload), [generate_arm(workload)]
    runs = [run for block in blocks(items) for run in measure_block(workload, *arms, block, check)]
    assert {run.lossless for run in runs} == {"mismatch"}


def test_sampled_outputs_are_not_compared(near_ties: TableRunner) -> None:
    assert LosslessCheck(near_ties, 0.0, sampled=True)(_item([0]), [1, 2], [3]) == LosslessVerdict("sampled")


class _Rounding(Altered, TableRunner):
    """Verifies with an error, another one in each call."""

    errors = (0.1, -0.3, 0.0, 0.25, -0.15)

    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        if kind == "verification":
            logits[-1, 1] += self.errors[len(self.verified) - 1]
        return logits


def test_the_numeric_floor_is_the_largest_difference_of_any_verification() -> None:
    runner = _Rounding(chain(8, 4.0))
    answer = [1, 2, 3, 4, 5, 6, 7]
    assert numeric_floor(runner, _item([7, 0]), answer) == pytest.approx(0.3, abs=1e-6)
    assert runner.verified == [[1, 2, 3], [4, 5, 6], [1, 2, 3, 4, 5], [6, 7], answer]
    assert runner.tokens == [7, 0, *answer]


def test_the_numeric_floor_is_nothing_where_verification_is_exact() -> None:
    assert numeric_floor(TableRunner(chain(8, 4.0)), _item([0]), [1, 2, 3]) == 0.0


class _NotANumber(Altered, TableRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits * float("nan") if kind == "verification" else logits


def test_the_numeric_floor_does_not_hide_logits_that_are_no_numbers() -> None:
    assert not numeric_floor(_NotANumber(chain(8, 4.0)), _item([0]), [1, 2, 3]) < 1e9


def test_the_numeric_floor_of_a_bfloat16_model_is_a_few_of_its_steps(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir, "bfloat16")
    runner, item = FastRunner(loaded), _item(prompt_tokens(10), 20)
    answer = autoregressive_arm(Workload(loaded, runner, PromptOptions())).decode(item).tokens
    floor = numeric_floor(runner, item, answer)
    assert 0.0 <= floor < 0.5
    assert runner.length == 10 + len(answer)


def test_a_runner_that_drafts_wrongly_but_verifies_is_still_lossless_and_one_that_does_not_is_caught(
    workload: Workload,
) -> None:
    class AcceptsTooMuch(Altered, FastRunner):
        """Its verification always agrees with the drafts."""

        def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
            for row, token in enumerate(tokens[1:] if kind == "verification" else []):
                logits[row, token] = 1e4
            return logits

    broken = Workload(workload.loaded, AcceptsTooMuch(workload.loaded), workload.options)
    check = LosslessCheck(workload.runner, FLOAT32_FLOOR)
    everything = Draft(SkipSet(4, (0, 1, 2, 3), (0, 1, 2, 3)), DraftPolicy(PolicyKind.FIXED, 3))
    verdicts = {}
    for name, subject in (("right", workload), ("broken", broken)):
        candidate = self_speculative_arm(subject, everything)
        block = Block(_item(prompt_tokens(9), 12), 0, 0, 0)
        verdicts[name] = measure_block(workload, autoregressive_arm(workload), [candidate], block, check)[0].lossless
    assert verdicts == {"right": "identical", "broken": "mismatch"}


# -- arms and workload -------------------------------------------------------------------------------------------


def test_the_generate_arm_gives_the_baselines_tokens_and_its_own_times(workload: Workload) -> None:
    for seed, eos in ((0, frozenset({2})), (1, frozenset({2}))):
        item = _item(prompt_tokens(20, seed), 12, eos)
        plain, generated = autoregressive_arm(workload).decode(item), generate_arm(workload).decode(item)
        assert (generated.tokens, generated.stop_reason) == (plain.tokens, plain.stop_reason)
        assert generated.prefill_seconds > 0
        assert generated.decode_seconds > 0
        assert generated.verify_seconds == generated.decode_seconds
        assert generated.rounds == []


def test_the_generate_arm_stops_where_the_baseline_stops(workload: Workload) -> None:
    prompt = prompt_tokens(20)
    text = autoregressive_arm(workload).decode(_item(prompt, 12)).tokens
    item = _item(prompt, 12, frozenset({text[4]}))
    plain, generated = autoregressive_arm(workload).decode(item), generate_arm(workload).decode(item)
    assert generated.tokens == plain.tokens == text[: text.index(text[4]) + 1]
    assert generated.stop_reason == plain.stop_reason == "eos"


@pytest.mark.parametrize(
    "defaults",
    [
        {"repetition_penalty": 1.9},
        {"do_sample": True, "temperature": 5.0, "top_k": 20, "top_p": 0.5},
        {"min_new_tokens": 12},
        {"suppress_tokens": list(range(3, 60))},
    ],
    ids=["repetition penalty", "sampling", "least length", "suppressed tokens"],
)
def test_the_checkpoints_own_generation_defaults_do_not_reach_the_generate_arm(
    workload: Workload, defaults: dict[str, object]
) -> None:
    prompt = prompt_tokens(20)
    text = autoregressive_arm(workload).decode(_item(prompt, 12)).tokens
    item = _item(prompt, 12, frozenset({text[6]}))
    expected = autoregressive_arm(workload).decode(item).tokens
    for name, value in defaults.items():
        setattr(workload.loaded.model.generation_config, name, value)
    assert generate_arm(workload).decode(item).tokens == expected


def test_the_generate_arm_samples_with_the_same_settings(workload: Workload) -> None:
    sampled = Workload(
        workload.loaded, workload.runner, PromptOptions(max_new_tokens=6, temperature=0.7, top_p=0.9, top_k=3, seed=1)
    )
    item = _item(prompt_tokens(8), 6)
    once, again = generate_arm(sampled).decode(item), generate_arm(sampled).decode(item)
    assert once.tokens == again.tokens
    certain = Workload(workload.loaded, workload.runner, PromptOptions(max_new_tokens=6, temperature=0.7, top_k=1))
    assert generate_arm(certain).decode(item).tokens == autoregressive_arm(workload).decode(item).tokens


def test_the_workload_samples_as_its_options_say(workload: Workload) -> None:
    options = PromptOptions(temperature=0.5, top_p=0.9, top_k=7, seed=11)
    sampler = Workload(workload.loaded, workload.runner, options).sampler
    assert (sampler.temperature, sampler.top_k, sampler.top_p, sampler.seed) == (0.5, 7, 0.9, 11)
    assert workload.sampler.greedy


def test_prompts_become_items_that_end_where_the_model_does(workload: Workload) -> None:
    items = workload.items([Prompt("a/1", "code", "return the sum"), Prompt("a/2", "chat", "hello")])
    assert [item.id for item in items] == ["a/1", "a/2"]
    assert items[0].limits == Limits(12, frozenset({2}))
    assert list(items[1].tokens) == workload.loaded.tokenizer("hello")["input_ids"]
    assert workload.limits(5).max_new_tokens == 5


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_by_name(workload: Workload) -> None:
    with pytest.raises(PromptError, match=r"Prompt a/long has .* does not fit the model's context of 1024"):
        workload.items([Prompt("a/long", "code", "xyzq" * 300)])


def test_opening_a_workload_says_what_was_chosen(tiny_llama_dir: Path) -> None:
    class Listening(SilentReporter):
        stages: list[tuple[str, str]] = []  # noqa: RUF012
        notices: list[str] = []  # noqa: RUF012

        def stage(self, name: str, detail: str = "") -> None:
            self.stages.append((name, detail))

        def notice(self, message: str) -> None:
            self.notices.append(message)

    reporter = Listening()
    model = ModelOptions(str(tiny_llama_dir), dtype="float32", device="cpu")
    opened = open_workload(model, PromptOptions(), reporter)
    runner: Runner = opened.runner
    assert runner.name in ("native", "fast")
    assert reporter.stages == [("load", str(tiny_llama_dir))]
    assert "LlamaForCausalLM, 4 layers" in reporter.notices[-1]
    assert f"float32 on cpu, {runner.name} runner" in reporter.notices[-1]

from __future__ import annotations

import pytest

from selfspec_tune.draft import Round
from selfspec_tune.draft.rounds import PLAIN_ROUND
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import Interval
from selfspec_tune.results import LosslessCount, MethodResult, PositionCounts, metrics
from selfspec_tune.results.metrics import summarise, summarise_baseline
from tests.runs import paired_run

RUNS = [
    paired_run("a/1"),
    paired_run("a/1", round=1, candidate=(11, 0.5, 1.5)),
    paired_run("a/2", baseline=(5, 1.0, 1.0), candidate=(5, 1.0, 0.5), accepted=(3,), drafted=(4,), task="qa"),
]


def test_speedups_are_ratios_of_total_times() -> None:
    result = summarise("best", "self-speculative", RUNS, skip=SkipSet(4, (1,), (2, 3)), description="winner")
    assert result.decode_speedup is not None
    assert result.end_to_end_speedup is not None
    assert result.decode_speedup.value == pytest.approx(5.0 / 3.0)
    assert result.end_to_end_speedup.value == pytest.approx(7.0 / 5.0)
    assert result.geometric_mean_speedup == pytest.approx(((5.0 / 3.5) * (2.0 / 1.5)) ** 0.5)
    assert (result.num_prompts, result.num_runs) == (2, 3)
    assert result.tokens_per_second == pytest.approx(27 / 5.0)
    assert result.lossless == LosslessCount(identical=3)
    assert result.to_dict()["skip"] == {"attention": [1], "mlp": [2, 3]}


# Memory that halves its speed from one prompt to the next: 8 tokens a second, then 4.
LIMITED = [
    paired_run("a/1", plain_bytes=2.0, memory_bytes_per_second=16.0),
    paired_run("a/2", candidate=(11, 0.5, 2.0), plain_bytes=2.0, memory_bytes_per_second=8.0),
]


def test_decode_tokens_leave_out_those_of_the_prefill() -> None:
    assert summarise("best", "self-speculative", RUNS).decode_tokens_per_second == pytest.approx(24 / 3.0)
    assert summarise_baseline(RUNS).decode_tokens_per_second == pytest.approx(24 / 5.0)
    assert summarise("best", "best", [paired_run(candidate=(1, 0.5, 0.0))]).decode_tokens_per_second is None


def test_the_share_of_the_memorys_limit_is_by_each_pairs_own_minute() -> None:
    ours, plain = summarise("best", "self-speculative", LIMITED), summarise_baseline(LIMITED)
    assert ours.of_memory_limit is not None
    assert plain.of_memory_limit is not None
    allowed = 10 / 8 + 10 / 4  # seconds of the text's plain decoding, at the limit
    assert ours.of_memory_limit.value == pytest.approx(allowed / 3.0)
    assert plain.of_memory_limit.value == pytest.approx(allowed / 4.0)
    limit = metrics.memory_limit(LIMITED)
    assert limit is not None
    assert limit.tokens_per_second == pytest.approx(20 / allowed)
    assert (limit.bytes_per_token, limit.bytes_per_second.median) == (2.0, 12.0)
    assert ours.decode_tokens_per_second is not None
    assert ours.decode_tokens_per_second / limit.tokens_per_second == pytest.approx(ours.of_memory_limit.value)


def test_runs_of_which_no_limit_is_known_have_no_part_in_the_share() -> None:
    some = summarise("best", "self-speculative", [*LIMITED, *RUNS])
    assert some.of_memory_limit == summarise("best", "self-speculative", LIMITED).of_memory_limit
    assert summarise("best", "self-speculative", RUNS).of_memory_limit is None
    assert metrics.memory_limit(RUNS) is None


def test_a_lossy_method_carries_no_share_of_the_limit() -> None:
    lossy = [LIMITED[0], LIMITED[1].model_copy(update={"lossless": "mismatch"})]
    found = summarise("best", "self-speculative", lossy)
    assert found.of_memory_limit is None
    share = summarise("best", "self-speculative", LIMITED).of_memory_limit
    with pytest.raises(ValueError, match="1 runs were lossy, so no speedup"):
        MethodResult.model_validate(found.to_dict() | {"of_memory_limit": share})


def test_older_files_get_their_decode_rates_from_their_runs() -> None:
    methods = [summarise_baseline(RUNS), summarise("best", "self-speculative", RUNS)]
    older = [method.model_copy(update={"decode_tokens_per_second": None}) for method in methods]
    assert metrics.with_decode_rates(older, RUNS) == methods
    assert metrics.with_decode_rates(older, []) == older


def test_rates_come_from_the_rounds() -> None:
    result = summarise("best", "self-speculative", RUNS)
    assert result.acceptance_rate == pytest.approx((7 + 7 + 3) / (10 + 10 + 4))
    assert result.mean_accepted_tokens == pytest.approx((7 + 7 + 3) / 7 + 1)
    step_seconds = 5.0 / 24
    assert result.draft_cost_fraction == pytest.approx(0.4 * 3.0 / 24 / step_seconds)
    assert result.verify_cost_fraction == pytest.approx(0.6 * 3.0 / 7 / step_seconds)


def test_positions_are_counted_over_the_rounds_that_drafted_there() -> None:
    rounds = [Round(4, 4), Round(4, 2), Round(2, 0), Round(1, 1, "ngram"), PLAIN_ROUND]
    assert metrics.by_position(rounds) == PositionCounts(
        drafted=[4, 3, 2, 2], reached=[4, 2, 2, 1], accepted=[3, 2, 1, 1]
    )
    assert metrics.by_position([PLAIN_ROUND]) is None
    assert summarise("best", "self-speculative", RUNS).by_position == PositionCounts(
        drafted=[7, 7, 5, 5], reached=[7, 7, 5, 3], accepted=[7, 7, 3, 0]
    )
    assert summarise_baseline(RUNS).by_position is None


def test_tasks_are_broken_down() -> None:
    tasks = summarise("best", "self-speculative", RUNS).per_task
    assert list(tasks) == ["code", "qa"]
    assert tasks["qa"].num_prompts == 1
    assert tasks["qa"].acceptance_rate == pytest.approx(3 / 4)
    assert tasks["code"].decode_speedup is not None
    assert tasks["code"].decode_speedup.value == pytest.approx(4.0 / 2.5)


def test_an_advantage_is_over_common_prompts_and_each_beside_its_own_baseline() -> None:
    ours = [paired_run("a/1"), paired_run("a/2")]
    theirs = [paired_run("a/1", baseline=(11, 1.0, 4.0), candidate=(11, 1.0, 3.0)), paired_run("a/3")]
    end_to_end, decode = metrics.advantage(ours, theirs), metrics.advantage(ours, theirs, metrics.decode_times)
    assert end_to_end is not None
    assert decode is not None
    assert end_to_end.value == pytest.approx(2.5 * 4.0 / 5.0 / 1.5)
    assert decode.value == pytest.approx(2.0 * 3.0 / 4.0 / 1.0)
    assert metrics.advantage(ours, theirs[1:]) is None


def test_a_numerical_tie_stays_in_the_ratio_by_time_per_token() -> None:
    tie = paired_run(baseline=(11, 1.0, 10.0), candidate=(21, 1.0, 10.0), lossless="numerical_tie")
    result = summarise("best", "self-speculative", [tie])
    assert result.decode_speedup is not None
    assert result.end_to_end_speedup is not None
    assert result.decode_speedup.value == pytest.approx(2.0)
    assert result.end_to_end_speedup.value == pytest.approx(11.0 / 6.0)
    assert result.lossless.numerical_ties == 1


def test_tokens_that_came_with_the_prefill_are_not_decoded() -> None:
    several = paired_run(baseline=(11, 1.0, 10.0), candidate=(11, 4.0, 3.0), accepted=(), drafted=())
    candidate = several.candidate.model_copy(update={"first_tokens": 5})
    result = summarise("best", "rival", [several.model_copy(update={"candidate": candidate})])
    assert result.end_to_end_speedup is not None
    assert result.end_to_end_speedup.value == pytest.approx(11.0 / 7.0)
    assert result.decode_speedup is not None
    assert result.decode_speedup.value == pytest.approx((10.0 / 10) / (3.0 / 6))


def test_after_a_tie_only_what_the_prefill_left_is_scaled() -> None:
    tie = paired_run(baseline=(11, 1.0, 10.0), candidate=(17, 4.0, 6.0), accepted=(), drafted=())
    candidate = tie.candidate.model_copy(update={"first_tokens": 5})
    result = summarise("best", "rival", [tie.model_copy(update={"candidate": candidate})])
    assert result.end_to_end_speedup is not None
    assert result.end_to_end_speedup.value == pytest.approx(11.0 / (4.0 + 3.0))


def test_what_was_not_timed_apart_has_no_cost() -> None:
    run = paired_run()
    candidate = run.candidate.model_copy(update={"draft_seconds": 0.0, "verify_seconds": 0.0})
    result = summarise("best", "rival", [run.model_copy(update={"candidate": candidate})])
    assert result.draft_cost_fraction is result.verify_cost_fraction is None
    assert result.acceptance_rate is not None


def test_one_mismatch_takes_every_speedup_away() -> None:
    result = summarise("best", "self-speculative", [*RUNS, paired_run("b/1", lossless="mismatch")])
    assert result.lossless.mismatches == 1
    assert result.decode_speedup is None
    assert result.end_to_end_speedup is None
    assert result.geometric_mean_speedup is None
    assert all(task.end_to_end_speedup is None for task in result.per_task.values())
    assert result.acceptance_rate is not None


def test_a_run_that_ends_with_the_prefill_has_no_decode_speedup() -> None:
    single = paired_run(baseline=(1, 0.5, 0.0), candidate=(1, 0.5, 0.0), accepted=(), drafted=())
    result = summarise("best", "self-speculative", [single])
    assert result.decode_speedup is None
    assert result.end_to_end_speedup is not None
    assert (result.acceptance_rate, result.mean_accepted_tokens) == (None, None)
    assert (result.draft_cost_fraction, result.verify_cost_fraction) == (None, None)


def test_sampled_runs_are_counted_as_sampled() -> None:
    result = summarise("best", "self-speculative", [paired_run(lossless="sampled")])
    assert result.lossless == LosslessCount(sampled=1)


def test_the_baseline_is_exactly_as_fast_as_itself() -> None:
    result = summarise_baseline(RUNS)
    assert (result.name, result.id) == ("autoregressive", "autoregressive")
    assert result.end_to_end_speedup == result.decode_speedup == Interval(1.0, 1.0, 1.0)
    assert result.tokens_per_second == pytest.approx(27 / 7.0)
    assert result.per_task["code"].end_to_end_speedup == Interval(1.0, 1.0, 1.0)


def test_a_method_needs_a_run() -> None:
    with pytest.raises(ValueError, match="without a single run"):
        summarise("best", "self-speculative", [])

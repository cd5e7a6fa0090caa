from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import RawGeneration
from selfspec_tune.measure import bench_result as bench_result_module
from selfspec_tune.measure.arms import GENERATE, NULL, SELF_SPECULATIVE, Arm
from selfspec_tune.measure.bench_result import baseline_vs_generate, bench_result
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.report.bench import check_lines
from selfspec_tune.report.search import print_skip_config
from selfspec_tune.report.text import bench_verdict, score_verdict
from selfspec_tune.requests import Objective
from selfspec_tune.results import BenchResult, PairedRun, SkipConfig
from selfspec_tune.search import conclusion
from tests.results_kit import MODEL
from tests.runs import paired_run

MAIN, OTHER = "self-speculative:1", "self-speculative:2"
NUM_PROMPTS = 40
WORKLOAD: Any = SimpleNamespace(
    options=SimpleNamespace(seed=0), loaded=SimpleNamespace(describe=lambda: MODEL.to_dict())
)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning comes from what else runs here."""
    monkeypatch.setattr(bench_result_module, "load_average", lambda: 0.1)
    monkeypatch.setattr(bench_result_module, "num_cores", lambda: 2)


def arm(arm_id: str, name: str | None = None) -> Arm:
    def decode(item: WorkItem) -> RawGeneration:
        raise NotImplementedError

    kind = name or (SELF_SPECULATIVE if arm_id.startswith(SELF_SPECULATIVE) else arm_id)
    draft = None if kind in (NULL, GENERATE) else Draft(SkipSet(12, (3, 4), (5,)))
    return Arm(arm_id, kind, decode, draft, description=f"what {arm_id} does")


def runs_of(arm_id: str, speedup: float, count: int = NUM_PROMPTS, **fields: Any) -> list[PairedRun]:
    """Pairs at about this speedup, slightly different for each prompt."""
    return [
        paired_run(
            f"set/{number}",
            method=arm_id,
            task=("code", "chat")[number % 2],
            baseline=(11, 0.0, 1.0),
            candidate=(11, 0.0, (1.0 + 0.01 * (number % 3)) / speedup),
            **fields,
        )
        for number in range(count)
    ]


def result_of(arms: Sequence[Arm], runs: Sequence[PairedRun], **fields: Any) -> BenchResult:
    options: dict[str, Any] = {"split": "test", "in_sample": False, "provenance": {"seed": 1}}
    return bench_result(WORKLOAD, arms, runs, **(options | fields))


def measured(speedup: float, *, generate: float = 0.5, **fields: Any) -> BenchResult:
    """One skip set, the A-A run and model.generate, which runs at ``generate`` times our speed."""
    runs = runs_of(MAIN, speedup, **fields) + runs_of(GENERATE, generate, 8, accepted=(), drafted=())
    null = [paired_run(f"set/{n}", method=NULL, accepted=(), drafted=(), candidate=(11, 0.5, 2.0)) for n in range(8)]
    return result_of([arm(MAIN), arm(NULL), arm(GENERATE)], runs + null)


def test_a_row_for_the_baseline_and_for_each_arm_but_the_a_a_run() -> None:
    result = measured(1.3)
    assert [(m.name, m.id) for m in result.methods] == [
        ("autoregressive", "autoregressive"),
        (SELF_SPECULATIVE, MAIN),
        (GENERATE, GENERATE),
    ]
    main = result.method(MAIN)
    assert main is not None
    assert main.description == f"what {MAIN} does"
    assert main.skip is not None
    assert main.skip.attention == [3, 4]
    assert list(main.per_task) == ["chat", "code"]
    assert result.methods[2].skip is None


def test_the_baselines_row_rests_on_every_prompt() -> None:
    baseline = measured(1.3).methods[0]
    assert (baseline.num_prompts, baseline.num_runs) == (NUM_PROMPTS, NUM_PROMPTS)
    assert baseline.tokens_per_second == pytest.approx(11.0)


def test_clear_gains_and_losses_get_their_verdict() -> None:
    assert measured(1.3).verdict == "faster"
    assert measured(0.8).verdict == "not_faster"
    assert measured(1.3).warnings == measured(1.3).withheld_because == []


def test_a_gain_whose_interval_reaches_below_one_is_undecided() -> None:
    runs = runs_of(MAIN, 2.5, 10) + [
        run.model_copy(update={"prompt_hash": f"x{i}"}) for i, run in enumerate(runs_of(MAIN, 0.75, 12))
    ]
    result = result_of([arm(MAIN)], runs)
    interval = result.methods[1].end_to_end_speedup
    assert interval is not None
    assert interval.low < 1.0 < interval.value
    assert result.verdict == "undecided"


def test_the_a_a_run_stands_apart() -> None:
    result = measured(1.3)
    assert result.a_a is not None
    assert result.a_a.end_to_end.value == pytest.approx(1.0)
    assert result.a_a.num_prompts == 8
    assert result.method(NULL) is None


def test_the_verdict_is_withheld_where_our_baseline_is_slower_than_generate() -> None:
    result = measured(1.3, generate=1.25)
    assert result.baseline_vs_generate == pytest.approx(1 / 1.25, rel=0.02)
    assert result.verdict == "withheld"
    (warning,) = result.warnings
    assert result.withheld_because == [warning]
    assert "1.24 times as long as model.generate" in warning or "1.25 times as long as model.generate" in warning
    assert "`runner` fast" in warning
    main = result.method(MAIN)
    assert main is not None
    assert main.end_to_end_speedup is not None


def test_the_verdict_is_withheld_where_outputs_differ() -> None:
    runs = runs_of(MAIN, 1.3)
    runs[7] = runs[7].model_copy(update={"lossless": "mismatch", "first_difference": 3, "logit_gap": 0.7})
    result = result_of([arm(MAIN)], runs)
    assert result.verdict == "withheld"
    (warning,) = result.warnings
    assert f"1 of {NUM_PROMPTS} runs differ" in warning
    assert "`dtype` float32" in warning
    main = result.method(MAIN)
    assert main is not None
    assert (main.end_to_end_speedup, main.decode_speedup) == (None, None)
    assert main.lossless.mismatches == 1


def test_a_lossy_rival_does_not_spoil_the_main_sets_verdict() -> None:
    runs = runs_of(MAIN, 1.3) + runs_of(OTHER, 2.0, lossless="mismatch")
    result = result_of([arm(MAIN), arm(OTHER)], runs)
    assert result.verdict == "faster"
    other = result.method(OTHER)
    assert other is not None
    assert other.end_to_end_speedup is None


def test_a_baseline_that_is_not_the_models_own_gets_neither_verdict_nor_ratio() -> None:
    other = runs_of(GENERATE, 0.5, count=8)
    other[2] = other[2].model_copy(update={"lossless": "mismatch", "first_difference": 3, "logit_gap": 0.7})
    result = result_of([arm(MAIN), arm(GENERATE)], runs_of(MAIN, 1.3) + other)
    assert result.verdict == "withheld"
    assert result.baseline_vs_generate is None
    assert "1 of 8 answers of our baseline are not those of model.generate" in result.withheld_because[0]


def test_the_verdict_is_about_the_first_skip_set_given() -> None:
    runs = runs_of(MAIN, 0.8) + runs_of(OTHER, 1.5)
    assert result_of([arm(MAIN), arm(OTHER)], runs).verdict == "not_faster"
    assert result_of([arm(OTHER), arm(MAIN)], runs).verdict == "faster"


def test_references_are_no_skip_sets_of_the_users() -> None:
    runs = runs_of(MAIN, 0.8) + runs_of("uniform", 1.5, 4) + runs_of("random", 1.5, 4)
    result = result_of([arm(MAIN), arm("uniform"), arm("random")], runs)
    assert result.verdict == "not_faster"
    assert [method.name for method in result.methods] == ["autoregressive", SELF_SPECULATIVE, "uniform", "random"]


def test_few_prompts_are_warned_of() -> None:
    result = result_of([arm(MAIN)], runs_of(MAIN, 1.3, 5))
    assert any("rests on 5 prompts" in warning for warning in result.warnings)


def test_a_noisy_a_a_run_is_warned_of() -> None:
    null = [
        paired_run(f"set/{n}", method=NULL, candidate=(11, 0.5, 1.5 + 0.01 * n), accepted=(), drafted=())
        for n in range(8)
    ]
    result = result_of([arm(MAIN), arm(NULL)], runs_of(MAIN, 1.3) + null)
    assert any("baseline against itself" in warning for warning in result.warnings)


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_result_module, "load_average", lambda: 7.0)
    assert any("load average is 7.0 on 2 cores" in warning for warning in measured(1.3).warnings)


def test_a_spike_among_repeated_rounds_is_warned_of_and_kept() -> None:
    rounds = [run.model_copy(update={"round": number}) for number in range(3) for run in runs_of(MAIN, 1.3)]
    slow = rounds[5].baseline.model_copy(update={"decode_seconds": 9.0})
    rounds[5] = rounds[5].model_copy(update={"baseline": slow})
    result = result_of([arm(MAIN)], rounds)
    assert any("1 of 40 prompts had a run over 1.5 times its median" in warning for warning in result.warnings)
    assert result.runs[5].baseline.decode_seconds == 9.0
    assert result.methods[1].num_runs == 120


def test_ties_more_frequent_than_with_nothing_skipped_withhold_the_verdict() -> None:
    empty = "empty-skip-set"
    ties = runs_of(MAIN, 1.3, lossless="numerical_tie")
    few = [*ties[:2], *runs_of(MAIN, 1.3)[2:]]
    reference = runs_of(empty, 1.0, 16)
    arms = [arm(MAIN), arm(empty)]
    assert result_of(arms, [*few, *reference]).verdict == "faster"
    result = result_of(arms, [*ties, *reference])
    assert result.verdict == "withheld"
    assert any("ties" in warning.lower() for warning in result.warnings)


def test_the_result_keeps_its_raw_runs_split_and_provenance() -> None:
    runs = runs_of(MAIN, 1.3)
    result = result_of([arm(MAIN)], runs, split="in_sample", in_sample=True, provenance={"seed": 4})
    assert result.runs == runs
    assert (result.split, result.in_sample, result.provenance) == ("in_sample", True, {"seed": 4})
    assert result.model == MODEL
    assert BenchResult.from_dict(result.to_dict(), origin="here") == result


def test_without_references_the_ratio_to_generate_is_unknown_and_nothing_is_withheld() -> None:
    result = result_of([arm(MAIN)], runs_of(MAIN, 1.3))
    assert result.baseline_vs_generate is None
    assert result.a_a is None
    assert result.verdict == "faster"


def test_the_ratio_to_generate_compares_time_per_token() -> None:
    assert baseline_vs_generate([]) is None
    # generate made twice the tokens in the same decode time: per token it took half as long.
    run = paired_run(baseline=(11, 1.0, 10.0), candidate=(21, 1.0, 10.0), accepted=(), drafted=())
    assert baseline_vs_generate([run]) == pytest.approx((1.0 + 5.0) / 11.0)


# -- answers that degenerate ------------------------------------------------------------------------------------


def circling(speedup: float, sound: float, number: int, **fields: Any) -> list[PairedRun]:
    """Pairs of which the first ``number`` degenerate at ``speedup``; the others run at ``sound``."""
    runs = runs_of(MAIN, speedup, number, degenerate=True, **fields)
    return runs + runs_of(MAIN, sound, degenerate=False, **fields)[number:]


def test_the_verdict_goes_by_answers_that_do_not_degenerate() -> None:
    result = result_of([arm(MAIN)], circling(3.0, 0.9, 20))
    main = result.methods[1]
    assert main.end_to_end_speedup is not None
    assert main.end_to_end_speedup.value > 1.3
    assert main.degenerate_share == 0.5
    assert main.without_degenerate is not None
    assert main.without_degenerate.num_prompts == NUM_PROMPTS - 20
    assert main.without_degenerate.end_to_end_speedup is not None
    assert main.without_degenerate.end_to_end_speedup.value == pytest.approx(0.9, rel=0.02)
    assert result.verdict == "not_faster"
    (warning,) = result.warnings
    assert "50% of the answers degenerate" in warning
    assert "lookup most" in warning
    assert "without them" in warning
    assert "on 20 held-out prompts whose answers do not degenerate" in bench_verdict(result)
    assert "0.89× end to end" in bench_verdict(result) or "0.90× end to end" in bench_verdict(result)


def test_a_gain_that_stays_without_degenerate_answers_is_one() -> None:
    result = result_of([arm(MAIN)], circling(3.0, 1.3, 4))
    assert result.verdict == "faster"
    assert len(result.warnings) == 1
    assert "Degenerate answers: 10 %; 1.29× [1.28–1.29] end to end without them." in check_lines(result)


def test_where_all_answers_degenerate_there_is_no_verdict() -> None:
    result = result_of([arm(MAIN)], circling(3.0, 3.0, NUM_PROMPTS))
    assert result.verdict == "withheld"
    (reason,) = result.withheld_because
    assert f"All {NUM_PROMPTS} answers degenerate" in reason
    assert "`template` chat" in reason
    assert result.methods[1].without_degenerate is None


def test_a_verdict_on_fewer_than_8_sound_answers_says_so() -> None:
    few, enough = (result_of([arm(MAIN)], circling(3.0, 1.3, NUM_PROMPTS - number)) for number in (6, 8))
    phrase = "on 6 held-out prompts whose answers do not degenerate, fewer than the 8 that a verdict needs"
    assert phrase in bench_verdict(few)
    assert "fewer than" not in bench_verdict(enough)
    assert any("on 6 prompts, fewer than the 8" in warning for warning in few.warnings)


def test_one_sound_answer_tells_nothing() -> None:
    assert result_of([arm(MAIN)], circling(3.0, 3.0, NUM_PROMPTS - 1)).verdict == "undecided"


def test_sound_answers_are_said_to_be_and_older_runs_say_nothing() -> None:
    sound, older = result_of([arm(MAIN)], circling(1.0, 1.3, 0)), measured(1.3)
    assert sound.warnings == []
    assert sound.methods[1].degenerate_share == 0.0
    assert "Degenerate answers: none." in check_lines(sound)
    assert older.methods[1].degenerate_share is None
    assert not [line for line in check_lines(older) if "egenerate" in line]


def too_short(number: int, *, degenerate: int = 0) -> BenchResult:
    """Of all answers the first ``number`` are too short to tell, the next ``degenerate`` degenerate."""
    short = runs_of(MAIN, 1.3, too_short=True)[:number]
    circling = runs_of(MAIN, 1.3, degenerate=True)[number : number + degenerate]
    return result_of([arm(MAIN)], [*short, *circling, *runs_of(MAIN, 1.3, degenerate=False)[number + degenerate :]])


def test_answers_too_short_to_tell_are_counted_and_not_called_sound() -> None:
    some, circling, everything = too_short(3), too_short(3, degenerate=2), too_short(NUM_PROMPTS)
    assert "Degenerate answers: 0 of 40; 3 too short to tell." in check_lines(some)
    assert some.methods[1].num_too_short == 3
    (line,) = [line for line in check_lines(circling) if line.startswith("Degenerate answers: 5 %;")]
    assert line.endswith("end to end without them; 3 too short to tell.")
    assert "Degenerate answers: not known: all 40 are too short to tell." in check_lines(everything)
    assert everything.methods[1].degenerate_share is None
    assert everything.verdict == "faster"
    loaded: Any = WORKLOAD.loaded
    config = conclusion.skip_config(loaded, Draft(SkipSet(12, (3,))), some, {}, Objective.SHARED)
    assert SkipConfig.from_dict(config.to_dict(), origin="here").score.num_too_short == 3


def test_a_lossy_run_has_no_figure_without_degenerate_answers_either() -> None:
    main = result_of([arm(MAIN)], circling(3.0, 3.0, 4, lossless="mismatch")).methods[1]
    assert main.degenerate_share == 0.1
    assert main.without_degenerate is not None
    assert main.without_degenerate.end_to_end_speedup is None


def test_a_skip_file_carries_the_share_and_shows_it() -> None:
    bench = result_of([arm(MAIN)], circling(3.0, 0.9, 20))
    loaded: Any = WORKLOAD.loaded
    config = conclusion.skip_config(loaded, Draft(SkipSet(12, (3,))), bench, {}, Objective.SHARED)
    read = SkipConfig.from_dict(config.to_dict(), origin="here")
    assert read.score.degenerate_share == 0.5
    console = Console(width=120, file=StringIO())
    print_skip_config(console, read)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "degenerate answers" in shown
    assert "50 %" in shown
    assert "whose answers do not degenerate" in score_verdict(read.score)

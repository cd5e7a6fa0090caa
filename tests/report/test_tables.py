from __future__ import annotations

import io

import pytest
from rich.console import Console

from selfspec_tune.bench.compare import Comparison
from selfspec_tune.intervals import Interval
from selfspec_tune.report.bench import lossless, print_bench
from selfspec_tune.report.comparison import print_comparison
from selfspec_tune.report.search import draft_line, print_skip_config
from selfspec_tune.report.text import bench_verdict, bounds, score_verdict, times
from selfspec_tune.results import BenchResult, DraftSettings, LosslessCount, Score
from selfspec_tune.results.metrics import unavailable_method
from tests.results_kit import FASTER, LIMITED, bench_result, skip_config

SLOWER = Interval(0.93, 0.9, 0.96)
UNSURE = Interval(1.02, 0.97, 1.07)


def console(width: int) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, color_system=None, highlight=False), stream


def bench_text(result: BenchResult, width: int) -> str:
    target, stream = console(width)
    print_bench(target, result)
    return stream.getvalue()


def with_headline(result: BenchResult, speedup: Interval) -> BenchResult:
    methods = [result.methods[0], result.methods[1].model_copy(update={"end_to_end_speedup": speedup})]
    return result.model_copy(update={"methods": methods})


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_bench_report_fits_the_terminal(width: int) -> None:
    lines = bench_text(bench_result(), width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_figure_of_the_bench_report_is_cut(width: int) -> None:
    result = bench_result()
    speedup = result.methods[1].end_to_end_speedup
    assert speedup is not None
    shown = bench_text(result, width)
    assert "…" not in shown
    figures = (times(speedup.value), f"[{bounds(speedup)}]")
    for part in ("self-speculative", "autoregressive", *figures, "attn 2-4,9 · mlp 5", "32 ="):
        assert part in shown


def test_a_wide_terminal_shows_every_column() -> None:
    shown = bench_text(bench_result(), 160)
    for header in (
        "skip",
        "end to end",
        "decode",
        "tok/s",
        "of limit",
        "accept",
        "MAT",
        "draft cost",
        "lossless",
        "prompts",
    ):
        assert header in shown
    assert "32 = / 0 tie / 0 ≠" in shown


def test_a_narrow_terminal_drops_the_lesser_columns() -> None:
    header = bench_text(bench_result(), 60)
    assert "draft cost  " not in header
    assert "MAT  " not in header
    assert "end to end" in header


def test_the_conditions_of_a_bench_stand_above_its_figures() -> None:
    prompts = {"source": "humaneval", "max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    provenance = {"hardware": {"cpu": "Some CPU", "threads": 2}, "runner": "native", "prompts": prompts}
    page = bench_text(bench_result(provenance=provenance), 120)
    told = "Some CPU · 2 threads · native runner · humaneval prompts of 20–20 tokens, up to 128 new · "
    assert page.splitlines()[1].rstrip() == f"{told}greedy"
    drawn = provenance | {"prompts": prompts | {"temperature": 0.7, "top_k": 20}}
    page = bench_text(bench_result(provenance=drawn), 160)
    assert page.splitlines()[1].rstrip() == f"{told}temperature 0.7, top p 1, top k 20"
    assert "method" in bench_text(bench_result(), 120).splitlines()[2]


def test_every_shown_column_is_explained_and_no_other() -> None:
    narrow, wide = (" ".join(bench_text(bench_result(), width).split()) for width in (60, 160))
    for header in ("end to end:", "tok/s:", "lossless:"):
        assert header in narrow
    for header in ("decode:", "of limit:", "accept:", "MAT:", "draft cost:"):
        assert header not in narrow
        assert header in wide
    assert "tok/s ÷ what the memory allows plain bfloat16 decoding" in wide


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_share_of_the_memorys_limit_is_told_at_any_width(width: int) -> None:
    page = bench_text(bench_result(run_fields=LIMITED), width)
    assert max(map(len, page.splitlines())) <= width
    assert (
        "Memory limit of plain bfloat16 decoding: 10.0 tok/s (2.00 GB a token at 20.0 GB/s); "
        "of it self-speculative 84 %, autoregressive 50 %."
    ) in " ".join(page.split())
    assert ("of limit" in page) == (width == 100)


def test_a_file_of_an_older_version_shows_its_rates_and_no_share() -> None:
    old = bench_result().to_dict()
    for record in (old, *old["methods"]):
        for key in ("memory_limit", "of_memory_limit", "decode_tokens_per_second"):
            record.pop(key, None)
    page = bench_text(BenchResult.from_dict(old, origin="here"), 100)
    assert "Memory limit" not in page
    (row,) = [line.split() for line in page.splitlines() if line.split()[:1] == ["autoregressive"]]
    assert row[3:5] == ["5.0", "–"]


def test_the_verdict_of_a_search_tells_tokens_a_second_and_the_share_of_the_limit() -> None:
    score = Score(verdict="faster", decode_speedup=FASTER, decode_tokens_per_second=31.04, num_prompts=32)
    target, stream = console(100)
    print_skip_config(target, skip_config(score=score))
    assert "1.21× [1.15–1.27], 31.0 tokens/s\n" in stream.getvalue().replace(" \n", "\n").replace("  ", "")
    target, stream = console(100)
    share = Interval(2.12, 2.0, 2.2)
    print_skip_config(target, skip_config(score=score.model_copy(update={"of_memory_limit": share})))
    assert "31.0 tokens/s, 212 % of the memory's limit for plain bfloat16" in stream.getvalue()


@pytest.mark.parametrize("width", [40, 60, 160])
def test_below_the_table_stands_what_was_accepted_by_position(width: int) -> None:
    shown = " ".join(bench_text(bench_result(), width).split())
    assert "Accepted by draft position: 100 % of 96 at 1, 100 % of 96 at 2, 50 % of 64 at 3, 0 % of 64 at 4." in shown


def test_of_a_bench_from_before_positions_were_counted_they_are_not_known() -> None:
    result = bench_result()
    old = [method.model_copy(update={"by_position": None}) for method in result.methods]
    assert "Accepted by draft position: –." in bench_text(result.model_copy(update={"methods": old}), 80)


def test_tasks_and_checks_are_printed_below_the_table() -> None:
    shown = bench_text(bench_result(warnings=["The load average is 9.0."]), 80)
    assert "maths" in shown
    assert "Baseline against itself: 1.00× [0.98–1.02] end to end, 1.00× [0.98–1.02]" in shown
    assert "Our baseline is 1.30× as fast as model.generate." in shown
    assert "warning: The load average is 9.0." in shown


def test_methods_that_share_a_name_are_told_apart_by_id() -> None:
    shown = bench_text(bench_result(second_skip_set=True), 160)
    assert "self-speculative:other" in shown


@pytest.mark.parametrize("width", [60, 100, 160])
def test_a_rivals_row_says_how_it_drafts_or_why_it_could_not_run(width: int) -> None:
    reason = "GPT2LMHeadModel of transformers runs all of its layers."
    result = bench_result()
    ran = result.methods[1].model_copy(
        update={"name": "hf-prompt-lookup", "id": "hf-prompt-lookup", "skip": None, "description": "10 tokens at most"}
    )
    absent = unavailable_method("hf-early-exit", "hf-early-exit", reason, description="the first 9 layers")
    shown = bench_text(result.model_copy(update={"methods": [*result.methods, ran, absent]}), width)
    assert max(map(len, shown.splitlines())) <= width
    assert "hf-prompt-lookup: 10 tokens at most." in shown
    assert "the first 9 layers" not in shown
    if width == 160:
        assert "hf-early-exit" in shown
        assert "not available: GPT2LMHeadModel" in shown
        assert "0 = / 0 tie / 0 ≠" not in shown
    words = {word.strip("│ ") for word in shown.split()}
    assert set(reason.split()) <= words


@pytest.mark.parametrize("widened", [True, False])
def test_model_generate_says_how_it_ran_where_that_is_not_as_we_did(widened: bool) -> None:
    about = "model.generate of transformers" + (", in float32, which is faster for it here" if widened else "")
    result = bench_result()
    update = {"name": "hf-generate", "id": "hf-generate", "skip": None, "description": about}
    ran = result.methods[1].model_copy(update=update)
    shown = bench_text(result.model_copy(update={"methods": [*result.methods, ran]}), 160)
    assert (f"hf-generate: {about}." in shown) == widened


def test_the_verdict_is_the_last_line() -> None:
    result = with_headline(bench_result(), FASTER)
    last = bench_text(result, 100).splitlines()[-1]
    assert last == "1.21× end to end (95 % interval 1.15–1.27) on 32 held-out prompts."


def test_not_faster_says_that_nothing_beats_one() -> None:
    result = with_headline(bench_result(verdict="not_faster"), SLOWER)
    assert bench_verdict(result) == (
        "Nothing beats 1.0×: the best found runs at 0.93× end to end (95 % interval 0.90–0.96) on 32 held-out prompts."
    )


def test_undecided_says_what_would_decide() -> None:
    result = with_headline(bench_result(verdict="undecided"), UNSURE)
    assert bench_verdict(result).startswith("Undecided: 1.02× end to end")
    assert "quieter machine" in bench_verdict(result)


def test_an_in_sample_bench_never_says_held_out() -> None:
    sentence = bench_verdict(with_headline(bench_result(in_sample=True), FASTER))
    assert "in sample" in sentence
    assert "held-out" not in sentence
    assert "had read" in bench_text(bench_result(in_sample=True), 100)


def test_mismatches_withhold_the_verdict() -> None:
    result = bench_result(run_fields={"lossless": "mismatch"})
    assert bench_verdict(result).startswith("Verdict withheld: 32 of 32 runs gave other tokens")
    assert "32 ≠" in bench_text(result, 80)


def test_a_slow_baseline_withholds_the_verdict() -> None:
    sentence = bench_verdict(bench_result(verdict="withheld", baseline_vs_generate=0.8))
    assert sentence.startswith("Verdict withheld: our autoregressive baseline runs at 0.80× of model.generate")


def test_another_reason_to_withhold_stands_in_the_warnings() -> None:
    assert bench_verdict(bench_result(verdict="withheld")) == "Verdict withheld: the warnings above say why."


def test_a_bench_without_a_skip_set_has_no_verdict() -> None:
    result = bench_result()
    result = result.model_copy(update={"methods": result.methods[:1], "verdict": "withheld"})
    assert bench_verdict(result) == "No skip set was measured, so there is no verdict."


def test_a_score_names_its_split() -> None:
    score = Score(verdict="faster", end_to_end_speedup=FASTER, split="selection", num_prompts=8)
    assert score_verdict(score).endswith("on 8 prompts of the selection split.")
    assert score_verdict(Score(verdict="undecided", withheld_because=["slow"])) == "Verdict withheld: slow"
    assert score_verdict(Score(verdict="undecided", num_prompts=2)) == (
        "Undecided, without an end-to-end speedup, on 2 held-out prompts."
    )


def test_lossless_counts_in_short_name_only_what_occurred() -> None:
    assert lossless(LosslessCount(identical=31, numerical_ties=1), full=False) == "31 =\n1 tie"
    assert lossless(LosslessCount(sampled=4), full=True) == "0 = / 0 tie / 0 ≠ / 4 sampled"
    assert lossless(LosslessCount(), full=False) == "–"


def test_a_skip_config_shows_map_draft_score_and_origin() -> None:
    target, stream = console(80)
    print_skip_config(target, skip_config())
    shown = stream.getvalue()
    for part in (
        "tiny · float32 · cpu",
        "attn ██···████·██",
        "attn 2-4,9 · mlp 5",
        "threshold 0.60, at most 6 tokens",
        "1.21× [1.15–1.27]",
        "00ff00ff00ff00ff",
        "selfspec-tune 0.1.0, commit 0123456789",
        "Some CPU, threads 2",
        "builtin, 1 calibration, 1 selection, 2 test",
        "on 32 held-out prompts",
    ):
        assert part in shown


def test_a_skip_config_shows_what_its_search_started_from() -> None:
    target, stream = console(80)
    starts = [{"name": "studies/old"}, {"name": "attn 2"}]
    print_skip_config(target, skip_config(provenance={"search": {"start_from": starts}}))
    assert "studies/old, attn 2" in stream.getvalue()


def test_a_skip_config_tells_how_tokens_were_drawn_where_not_greedily() -> None:
    target, stream = console(80)
    prompts = {"source": "builtin", "temperature": 0.0, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.3}
    print_skip_config(target, skip_config(provenance={"prompts": prompts}))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["decoding", "repetition", "penalty", "1.3"] in lines


def test_a_skip_config_without_provenance_is_shown_all_the_same() -> None:
    target, stream = console(80)
    print_skip_config(target, skip_config(provenance={}))
    assert "machine" not in stream.getvalue()


def test_a_fixed_draft_has_no_threshold() -> None:
    draft = DraftSettings(policy="fixed", max_draft_tokens=4, exit_threshold=0.6, vocabulary=8192)
    assert draft_line(draft, 12) == "fixed, at most 4 tokens, of the first 8192 token ids"


def test_the_draft_line_names_precision_and_lookup() -> None:
    settings = {
        "policy": "cost-aware",
        "max_draft_tokens": 16,
        "exit_threshold": 0.6,
        "precision": {"int4": {"attention": [0], "mlp": []}, "head": "int8"},
        "ngram": {"max_match": 4, "min_match": 2, "max_tokens": 10},
    }
    draft = DraftSettings.model_validate(settings)
    line = draft_line(draft, 12)
    assert line == "cost-aware, at most 16 tokens, at int4 attn 0; head int8, n-gram 2-4, 10 tokens"
    assert draft_line(draft.model_copy(update={"model_drafts": False}), 12).endswith("10 tokens alone")


def test_every_figure_of_a_bench_carries_the_share_of_degenerate_answers() -> None:
    result = bench_result(run_fields={"degenerate": False})
    main = result.methods[1]
    tasks = {name: task.model_copy(update={"degenerate_share": 0.125}) for name, task in main.per_task.items()}
    result.methods[1] = main.model_copy(update={"degenerate_share": 0.25, "per_task": tasks})
    other = main.model_copy(update={"id": "hf-generate", "name": "hf-generate", "degenerate_share": 0.5})
    result.methods.append(other)
    text = bench_text(result, 100)
    assert "Degenerate answers: 25 %" in text
    assert "Of the other rows' answers degenerate: 50 % of hf-generate." in text
    assert text.count("12 %") == 2
    assert "degenerate" not in bench_text(bench_result(), 100).lower()


def test_a_comparison_says_how_many_answers_degenerate() -> None:
    bench = bench_result(run_fields={"degenerate": False})
    stream = io.StringIO()
    print_comparison(Console(file=stream, width=100), Comparison([], bench, {}))
    assert "Degenerate answers: none." in stream.getvalue()

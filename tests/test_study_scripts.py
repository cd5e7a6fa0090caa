"""What ``scripts/study_decoding`` writes: its tables, made from small results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.errors import UsageError
from selfspec_tune.results import BenchResult, PairedRun
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.summary import summarise, summarise_baseline, unavailable_method
from tests.results_kit import MODEL, SKIP, bench_result
from tests.runs import paired_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import _never_loses as losses
import _study as study

MAIN = "self-speculative"
COSTS = CostModel(
    verify=(1.0, 1.1, 1.2, 1.3, 1.4),
    heads={Precision.SAME: 0.1},
    attention={Precision.SAME: 0.03},
    mlp={Precision.SAME: 0.045},
    num_layers=12,
)


def pairs(method: str, speedup: float, *, prompts: int = 4, rounds: int = 1, **fields: Any) -> list[PairedRun]:
    """Every prompt once a round at a decode speedup that lies a little around ``speedup``."""
    return [
        paired_run(
            f"set/{i}",
            method=method,
            round=round_,
            candidate=(11, 0.5, 2.0 / (speedup * (1 + 0.01 * (i - 1.5) + 0.02 * round_))),
            **fields,
        )
        for round_ in range(rounds)
        for i in range(prompts)
    ]


def result_of(runs: dict[str, list[PairedRun]], missing: dict[str, str] | None = None) -> BenchResult:
    """A bench of the main draft and others, each named by its id up to the colon."""
    first = next(iter(runs.values()))
    methods = [summarise_baseline(first)]
    methods += [summarise(id_, id_.split(":")[0], of, skip=SKIP, description=f"how {id_}") for id_, of in runs.items()]
    methods += [unavailable_method(id_, id_, reason) for id_, reason in (missing or {}).items()]
    return bench_result(methods=methods, runs=[run for of in runs.values() for run in of])


def rows(lines: list[str]) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/data/models/tiny-1b", "tiny-1b"),
        ("drafted by ../models/tiny-1b (2 layers), /a/b/c.json/", "drafted by tiny-1b (2 layers), c.json"),
        ("~/tiny", "tiny"),
        ("HumanEval/12 and builtin/code-03", "HumanEval/12 and builtin/code-03"),
        ("org/Tiny-12L at 3 GB/s, 1 / 2, and/or", "org/Tiny-12L at 3 GB/s, 1 / 2, and/or"),
    ],
)
def test_folders_of_the_machine_are_left_out(given: str, expected: str) -> None:
    assert study.without_paths({"a": [given], "b": 1}) == {"a": [expected], "b": 1}


def test_every_method_has_a_row_and_an_absent_rival_its_reason() -> None:
    result = result_of({MAIN: pairs(MAIN, 2.0)}, {"hf-early-exit": "it runs\nall | of them"})
    lines = study.methods_table(result)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {11}
    plain, main, absent = rows(lines)
    assert (plain[0], plain[1], plain[5]) == ("autoregressive", "1.00×", "–")
    assert (main[0], main[1][:5], main[3:7]) == (MAIN, "2.00×", ["70 %", "3.33", "40 %", "60 %"])
    assert main[7:] == ["4 = / 0 tie / 0 ≠", "4"]
    assert absent[:2] == ["hf-early-exit", "not available: it runs all \\| of them"]


def test_targets_are_met_or_missed_with_their_figures() -> None:
    measured = {MAIN: 3.0, "skips-alone:aa": 1.1, "copies-alone:bb": 2.5, "copies-and-skips:cc": 2.5, "self-sd:dd": 1.3}
    result = result_of({id_: pairs(id_, speedup) for id_, speedup in measured.items()}, {"hf-prompt-lookup": "no"})
    found = {(name, method, asked): (figures, said) for name, method, asked, figures, said in rows_of(result)}
    assert found["humaneval", "skips-alone", "1.35×"][1] == "**missed**"
    assert found["humaneval", "self-sd", "1.35×"][1] == "**missed**"
    assert found["builtin", "self-sd", "1.15×"][1] == "**met**"
    assert found["builtin", "copies-alone", "2.60×"][1] == "**missed**"
    assert found["humaneval", MAIN, "3.80×"][1] == "**missed**"
    assert found["builtin", MAIN, "2.80×"][1] == "**met**"
    figures, said = found["builtin", "copies-and-skips", "that of copies-alone"]
    assert (figures[:5], said) == ("1.00×", "**met**")
    assert found["builtin", MAIN, "that of copies-alone"][0].startswith("1.20× [1.20–1.20] of it")
    assert found["builtin", MAIN, "that of lookup-alone"] == ("not a part of this draft", "–")
    assert found["builtin", MAIN, "that of hf-prompt-lookup"] == ("hf-prompt-lookup could not run", "–")


def rows_of(result: BenchResult) -> list[list[str]]:
    return rows(study.target_table({"humaneval": result, "builtin": result}))


def test_a_lossy_method_is_compared_with_nothing() -> None:
    result = result_of({MAIN: pairs(MAIN, 3.0, lossless="mismatch"), "lookup-alone": pairs("lookup-alone", 2.0)})
    main, lookup = result.methods[1:]
    assert study.advantage(result, main, lookup) is None
    assert "has no decode speedup" in study.spread(result)
    assert ["builtin", MAIN, "2.80×", "–", "no figure"] in rows_of(result)


def test_an_advantage_is_of_each_methods_own_baseline() -> None:
    slow_hour = [
        run.model_copy(
            update={
                arm: getattr(run, arm).model_copy(update={"decode_seconds": 3 * getattr(run, arm).decode_seconds})
                for arm in ("baseline", "candidate")
            }
        )
        for run in pairs("lookup-alone", 2.0)
    ]
    result = result_of({MAIN: pairs(MAIN, 3.0), "lookup-alone": slow_hour})
    found = study.advantage(result, *result.methods[1:])
    assert found is not None
    assert found.value == pytest.approx(1.5)


def test_the_spread_names_the_prompts_at_both_ends() -> None:
    said = study.spread(result_of({MAIN: pairs(MAIN, 1.0)}))
    assert "0.99× (set/0) at least, 1.00× in the median, 1.01× (set/3) at most; 2 of 4 below 1" in said


def test_the_configuration_tells_the_draft_without_its_prior() -> None:
    from selfspec_tune.draft import AcceptancePrior

    policy = DraftPolicy(PolicyKind.COST_AWARE, 16, prior=AcceptancePrior(0.6, (0.5,) * 9 + (0.25,)))
    provenance = {"selfspec_tune": {"version": "1", "commit": "0123456789+"}, "hardware": {"cpu": "Some CPU"}}
    lines = study.configuration(bench_result(provenance=provenance), Draft(SKIP, policy))
    shown = "\n".join(lines)
    assert "| draft | attn 2-4,9 · mlp 5 (cost-aware 16) |" in shown
    assert "commit 0123456 with changes |" in shown
    assert "| model | tiny, 12 layers" in shown


# Never loses


def test_the_worst_prompts_are_predicted_from_what_they_drafted() -> None:
    draft = Draft(SKIP)
    good = paired_run("set/good", method=MAIN, drafted=(4, 4), accepted=(4, 4))
    bad = paired_run("set/bad", method=MAIN, drafted=(4, 4), accepted=(0, 0))
    plain = paired_run("set/plain", method=MAIN, drafted=(0, 0), accepted=(0, 0), candidate=(11, 0.5, 2.0))
    plain = plain.model_copy(update={"candidate": plain.candidate.model_copy(update={"sources": ["plain", "plain"]})})
    first = result_of({MAIN: [good, bad, plain]})
    found = losses.foresee(first, draft, COSTS)
    step = COSTS.draft_step(draft)
    assert [entry.prompt_id for entry in found] == ["set/bad", "set/plain", "set/good"]
    assert [entry.predicted for entry in found] == pytest.approx([1 / (4 * step + 1.4), 1.0, 5 / (4 * step + 1.4)])
    assert found[1].measured == pytest.approx(1.0)
    assert "**1 below 0.97×** of plain decoding (**missed**" in losses.predicted_lines(found, first)[0]


def test_the_worst_are_shown_beside_the_baseline_against_itself() -> None:
    found = [losses.Foreseen("set/0", 0.9, 0.8), losses.Foreseen("set/1", 1.0, None)]
    runs = {MAIN: pairs(MAIN, 0.95, prompts=2, rounds=5), "a-a": pairs("a-a", 1.0, prompts=2)}
    lines = losses.measured_lines(found, result_of(runs))
    assert lines[0] == "The worst 2 again, decode, 5 rounds:"
    first, second, together = rows(lines[2:7])
    assert (first[:3], first[4]) == (["set/0", "0.900×", "0.80×"], "0.99×")
    assert re.fullmatch(r"0\.97× \[0\.9[0-6]–(0\.9[89]|1\.\d\d)\]", first[3])
    assert second[2] == "–"
    assert together[0] == "all of them"


def test_costs_are_those_of_a_diagnosis_or_of_a_ranking(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    file.write_text(json.dumps({"cost_model": COSTS.to_dict()}))
    assert losses.read_costs(file, Draft(SKIP)) == COSTS
    with pytest.raises(UsageError, match="does not fit the draft: no costs were measured at precision int4"):
        losses.read_costs(file, Draft(SKIP, precision=DraftPrecision.uniform(MODEL.num_layers, Precision.INT4)))
    with pytest.raises(UsageError, match="does not fit the draft: no cost of a head over 64"):
        losses.read_costs(file, Draft(SKIP, vocabulary=64))
    file.write_text(
        json.dumps(
            {"schema": "selfspec-tune/ranking", "version": 2, "importance": [], "vocabulary": None, "candidates": []}
            | ranked()
        )
    )
    assert losses.read_costs(file, Draft(SkipSet.empty(12))) == COSTS
    file.write_text("{}")
    with pytest.raises(UsageError, match="holds no cost model"):
        losses.read_costs(file, Draft(SKIP))


def ranked() -> dict[str, Any]:
    return {"cost_model_seconds": COSTS.to_dict()}

"""``studies/qwen2.5-coder-1.5b-dithered/never_loses.py``, and what the code beside studies shares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.rounds import PLAIN_ROUND
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.prompts import load_prompts
from selfspec_tune.results import BenchResult, PairedRun
from selfspec_tune.results.metrics import summarise, summarise_baseline, unavailable_method
from tests import scripts_kit
from tests.results_kit import MODEL, SKIP, bench_result, skip_config
from tests.runs import paired_run

import never_loses as losses  # isort: skip  # from beside its study, by scripts_kit
import study_kit as study  # isort: skip

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


def test_the_worst_prompts_are_predicted_from_what_they_drafted() -> None:
    draft = Draft(SKIP)
    good = paired_run("set/good", method=MAIN, drafted=(4, 4), accepted=(4, 4))
    bad = paired_run("set/bad", method=MAIN, drafted=(4, 4), accepted=(0, 0))
    plain = paired_run("set/plain", method=MAIN, drafted=(0, 0), accepted=(0, 0), candidate=(11, 0.5, 2.0))
    plain = plain.model_copy(update={"candidate": plain.candidate.model_copy(update={"rounds": (PLAIN_ROUND,) * 2})})
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


def test_the_worst_are_written_to_be_benched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [prompt.id for prompt in load_prompts("builtin")][: losses.WORST + 1]
    runs = [
        run.model_copy(update={"prompt_id": name})
        for name, run in zip(prompts, pairs(MAIN, 2.0, prompts=9), strict=True)
    ]
    result_of({MAIN: runs}).save(tmp_path / "first.json")
    skip_config().save(tmp_path / "skip.json")
    (tmp_path / "doctor.json").write_text(json.dumps({"cost_model": COSTS.to_dict()}))
    files = [str(tmp_path / name) for name in ("skip.json", "first.json")]
    files += ["--costs", str(tmp_path / "doctor.json"), "--worst", str(tmp_path / "worst.jsonl")]
    files += ["--again", str(tmp_path / "first.json")]
    assert scripts_kit.run_script(monkeypatch, scripts_kit.DITHERED / "never_loses.py", *files) == 0
    worst = load_prompts(str(tmp_path / "worst.jsonl"))
    assert len(worst) == losses.WORST
    assert {prompt.id for prompt in worst} < set(prompts)
    assert "The worst 8 again, decode, 1 rounds:" in capsys.readouterr().out

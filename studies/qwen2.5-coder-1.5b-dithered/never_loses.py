#!/usr/bin/env python3
"""Whether a draft ever loses: prompts of a bench as the cost model sees them, and the worst of them measured again.

    studies/qwen2.5-coder-1.5b-dithered/never_loses.py search/skip.json never-loses.json --costs search/ranking.json \\
        --worst worst.jsonl
    selfspec-tune bench search/skip.json --prompts worst.jsonl --num-prompts 8 --rounds 5 --reference-prompts 8 \\
        --allow-calibration --max-new-tokens 128 --no-references --out worst.json
    studies/qwen2.5-coder-1.5b-dithered/never_loses.py search/skip.json never-loses.json --costs search/ranking.json \\
        --again worst.json

The bench never-loses.json is the step of that name in reproduce.toml. The decode speedup of each of its prompts is
predicted from the counts that occurred and from a cost model, so that the noise of one run chooses no prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from study_kit import checks, decoded, prompt_ratios, run, runs_of

from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, write_atomic
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.measure.arms import NULL
from selfspec_tune.prompts import BUILTIN, load_prompts
from selfspec_tune.report import text
from selfspec_tune.report.text import headline_method
from selfspec_tune.results import BenchResult, PairedRun, SkipConfig
from selfspec_tune.results.metrics import decode_times
from selfspec_tune.search.conclusion import predicted_from_counts
from selfspec_tune.search.stages.ranking import read_ranking

NEVER_BELOW, WORST = 0.97, 8


@dataclass(frozen=True, slots=True)
class Foreseen:
    """One prompt's decode speedup as the cost model gives it for the counts that occurred, and as measured once."""

    prompt_id: str
    predicted: float
    measured: float | None


def read_costs(file: Path, draft: Draft) -> CostModel:
    """The cost model of a ``doctor --json`` output or of a study's ranking.json, for the draft's vocabulary.

    Raises `UsageError` where the file has none, or not for that vocabulary and precision, and `FileFormatError`.
    """
    value = read_json(file)
    if "cost_model_seconds" in value:
        costs = read_ranking(file, draft.skip_set.num_layers).costs
    elif value.get("cost_model"):
        costs = CostModel.from_dict(value["cost_model"])
    else:
        raise UsageError(f"{file} holds no cost model; give the output of doctor --json, or a study's ranking.json")
    try:
        costs = costs if draft.vocabulary is None else costs.with_vocabulary(draft.vocabulary)
        costs.draft_step(draft)
    except ValueError as error:
        raise UsageError(f"{file} does not fit the draft: {error}; give the ranking.json of its search.") from error
    return costs


def foresee(result: BenchResult, draft: Draft, costs: CostModel) -> list[Foreseen]:
    """Every prompt of the main draft, those that gain least first."""
    main = headline_method(result)
    runs = runs_of(result, main.id) if main else []
    measured = prompt_ratios(runs)
    found = []
    for prompt_id, ratio in measured.items():
        of_prompt = [run for run in runs if run.prompt_id == prompt_id]
        predicted = predicted_from_counts(of_prompt, draft, costs)
        if predicted is not None:
            found.append(Foreseen(prompt_id, predicted, ratio if main and main.decode_speedup else None))
    return sorted(found, key=lambda entry: entry.predicted)


def predicted_lines(foreseen: Sequence[Foreseen], first: BenchResult) -> list[str]:
    """How many prompts are predicted to lose."""
    below = sum(entry.predicted < NEVER_BELOW for entry in foreseen)
    least, middle = foreseen[0].predicted, median(entry.predicted for entry in foreseen)
    return [
        f"{len(foreseen)} prompts, decode predicted from their recorded counts and the cost model: **{below} below "
        f"{NEVER_BELOW}×** of plain decoding ({'**missed**' if below else '**met**'}: none should be); "
        f"{least:.3f}× at least, {middle:.2f}× in the median.",
        "",
        *checks(first),
    ]


def measured_lines(foreseen: Sequence[Foreseen], again: BenchResult) -> list[str]:
    """The worst prompts beside their measurement over ``again``'s rounds, and the baseline against itself."""
    main = headline_method(again)
    runs = decoded(runs_of(again, main.id)) if main and main.decode_speedup else []
    null = prompt_ratios(runs_of(again, NULL))
    rounds = len({run.round for run in again.runs})
    lines = [f"The worst {min(WORST, len(foreseen))} again, decode, {rounds} rounds:", ""]
    lines += ["| prompt | predicted | measured at first, once | again | baseline against itself, once |"]
    lines += ["| --- " * 5 + "|"]
    for entry in foreseen[:WORST]:
        mine = [run for run in runs if run.prompt_id == entry.prompt_id]
        once, itself = (
            text.UNKNOWN if ratio is None else text.times(ratio)
            for ratio in (entry.measured, null.get(entry.prompt_id))
        )
        measured = text.speedup(over_rounds(mine)) if mine else text.UNKNOWN
        lines.append(f"| {entry.prompt_id} | {entry.predicted:.3f}× | {once} | {measured} | {itself} |")
    together = text.speedup(main.decode_speedup) if main else text.UNKNOWN
    null_run = text.speedup(again.a_a.decode) if again.a_a else text.UNKNOWN
    return [*lines, f"| all of them | | | {together} | {null_run} |", "", *checks(again)]


def over_rounds(runs: Sequence[PairedRun]) -> Interval:
    """One prompt's decode speedup; its interval is over the rounds, not over prompts."""
    times = decode_times(runs)
    return cluster_bootstrap(times.baseline, times.candidate, [run.round for run in runs])


def write_worst(foreseen: Sequence[Foreseen], file: Path) -> None:
    """The prompts that are predicted to do worst, to be benched again."""
    worst = {entry.prompt_id for entry in foreseen[:WORST]}
    chosen = [prompt for prompt in load_prompts(BUILTIN) if prompt.id in worst]
    rows = [json.dumps({"id": prompt.id, "task": prompt.task, "prompt": prompt.text}) for prompt in chosen]
    write_atomic(file, "".join(f"{row}\n" for row in rows))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Whether a draft ever loses.")
    parser.add_argument("skip", type=Path, help="skip.json of the draft")
    parser.add_argument("bench", type=Path, help="its bench on many prompts")
    parser.add_argument("--costs", type=Path, required=True, help="doctor --json, or the ranking.json of its search")
    parser.add_argument("--worst", type=Path, metavar="FILE.jsonl", help="write the worst prompts there")
    parser.add_argument("--again", type=Path, metavar="BENCH.json", help="the bench of those")
    asked = parser.parse_args()
    config, first = SkipConfig.load(asked.skip), BenchResult.load(asked.bench)
    draft = Draft.from_dict(config.skip_set(), config.draft.model_dump())
    foreseen = foresee(first, draft, read_costs(asked.costs, draft))
    lines = predicted_lines(foreseen, first)
    if asked.worst:
        write_worst(foreseen, asked.worst)
    if asked.again:
        lines += ["", *measured_lines(foreseen, BenchResult.load(asked.again))]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run(main)

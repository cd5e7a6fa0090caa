#!/usr/bin/env python3
"""How what a search costs beside measuring grows: with trials, with sub-layers, with text; and a plan for 70B.

    .venv/bin/python studies/growth/growth.py --out studies/growth

With a machine to itself, and no model:

1. trials of the search's own Optuna study with a scoring that takes no time, for each of ``--samplers`` and
   numbers of sub-layers: seconds of the proposal and of the journal, the journal's size. A sampler ends where a
   trial takes more than ``--most-seconds``;
2. calibration of narrow random models of ``--layers``, each in a process of its own: time and memory of answers,
   of the token-exact scorer, of evaluations; bytes for each token and layer beside the formula;
3. from these and the shapes of Llama-2-70B: what a search of 45 minutes on 8 GPUs would do, computed, not measured.

Everything is kept as it comes: the same command goes on where it was stopped. The results are written to
``--out``/results.json, and README.md, trials.svg and calibration.svg are made from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import growth_calibration as calibration
import growth_report as report
import growth_trials as trials
import large_plan as large
import study_kit as study
import torch

from selfspec_tune.errors import UsageError
from selfspec_tune.files import write_atomic, write_json_atomic
from selfspec_tune.provenance import collect
from selfspec_tune.report.plot import check_matplotlib
from selfspec_tune.requests import StrategyName
from selfspec_tune.search.study import StudyFolder


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All results, measured or read."""
    samplers = [StrategyName(name) for name in arguments.samplers.split(",")]
    cells = [trials.Cell(sampler, size) for size in arguments.sublayers for sampler in samplers]
    rows = trials.run_trials(cells, arguments.out, arguments.trials, arguments.most_seconds)
    wanted = [calibration.Calibration(layers, answers) for layers in arguments.layers for answers in arguments.answers]
    command = [sys.executable, str(Path(__file__).resolve()), "--cell"]
    calibrations = calibration.run_calibrations(wanted, arguments.out, command)
    known = {"overheads": overheads(rows), "replay_seconds": replay_seconds(calibrations)}
    return {
        "schema": "selfspec-tune/growth-study",
        "version": 1,
        "provenance": collect(threads=torch.get_num_threads(), seed=0),
        "trials": rows,
        "calibration": calibrations,
        "fit": calibration.fit(calibrations),
        "plans": [large.plan(large.LLAMA_2_70B, machine, large.Task(), known) for machine in large.MACHINES],
    }


def overheads(rows: list[dict[str, Any]]) -> list[float]:
    """Seconds of each trial of the search's default sampler at the large model's sub-layers; none: not measured."""
    key = {"sampler": StrategyName.TPE.value, "sublayers": 2 * large.LLAMA_2_70B.layers}
    return [row["seconds"] for row in rows if key.items() <= row.items() and "trial" in row]


def replay_seconds(rows: list[dict[str, Any]]) -> float:
    """Of one position, under a cost-aware policy."""
    return float(median(median(row["replay_seconds"]) / row["positions"] for row in rows))


def numbers(option: str, text: str, least: int) -> list[int]:
    """Whole numbers with commas between. Raises `UsageError`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise UsageError(f"{option} {text}: expected whole numbers from {least} on, such as 56,80,160.")
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samplers", default=",".join(trials.SAMPLERS))
    parser.add_argument("--sublayers", default="56,80,160", help="twice the layers of a model")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--most-seconds", type=float, default=20.0, help="a trial that costs more ends its sampler")
    parser.add_argument("--layers", default="12,28,56")
    parser.add_argument("--answers", default="4,16,32", help="calibration answers, a window each")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # one calibration in this process, as JSON
    arguments = parser.parse_args()
    if arguments.cell is None and arguments.out is None:
        parser.error("the following arguments are required: --out")
    unknown = [name for name in arguments.samplers.split(",") if name not in set(trials.SAMPLERS)]
    if unknown:
        raise UsageError(f"--samplers {','.join(unknown)}: expected some of {', '.join(trials.SAMPLERS)}.")
    arguments.sublayers = numbers("--sublayers", arguments.sublayers, 2)
    if any(size % 2 for size in arguments.sublayers):
        raise UsageError("--sublayers: expected even numbers, two sub-layers for each layer.")
    arguments.layers = numbers("--layers", arguments.layers, 1)
    arguments.answers = numbers("--answers", arguments.answers, 1)
    if arguments.trials < 2:
        raise UsageError(f"--trials {arguments.trials}: expected at least 2.")
    return arguments


def main() -> int:
    """Measure what is missing, then write the results and what is made from them."""
    arguments = parsed()
    if arguments.cell is not None:
        print(json.dumps(calibration.measure(calibration.Calibration(**json.loads(arguments.cell)))))
        return 0
    check_matplotlib("The pictures of this study")
    out: Path = arguments.out
    with StudyFolder(out).locked():
        asked = ("samplers", "sublayers", "trials", "most_seconds", "layers", "answers")
        study.settle(out / "settings.json", {name: getattr(arguments, name) for name in asked})
        results = study.without_paths(measured(arguments))
        write_json_atomic(out / "results.json", results)
        report.draw_trials(results["trials"], out / "trials.svg")
        report.draw_calibration(results["calibration"], results["fit"], out / "calibration.svg")
        lines = report.readme(results, study.command_line())
        write_atomic(out / "README.md", "\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    study.run(main)

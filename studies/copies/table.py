#!/usr/bin/env python3
"""The table of `errors.py`'s results: how often each kind of copy errs, beside the program's own.

.venv/bin/python studies/copies/table.py studies/copies/smollm2-135m.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy.stats import binomtest
from study_kit import run

from selfspec_tune.files import read_json
from selfspec_tune.intervals import Interval

_RESAMPLES = 4000
Wrong = Sequence[Sequence[int]]


def ratio(above: Sequence[int], below: Sequence[int]) -> Interval:
    """Of sums over prompts, with a 95 % interval by drawing prompts anew."""
    top, bottom = np.array(above, float), np.array(below, float)
    drawn = np.random.default_rng(0).integers(len(top), size=(_RESAMPLES, len(top)))
    low, high = np.quantile(top[drawn].sum(-1) / np.maximum(bottom[drawn].sum(-1), 1), [0.025, 0.975])
    return Interval(float(top.sum() / max(bottom.sum(), 1)), float(low), float(high))


def discordant(one: Wrong, other: Wrong) -> tuple[int, int]:
    """Positions where only the one, and only the other, is wrong."""
    pairs = [(set(a), set(b)) for a, b in zip(one, other, strict=True)]
    return sum(len(a - b) for a, b in pairs), sum(len(b - a) for a, b in pairs)


def cells(wrong: Wrong, beside: Wrong, positions: Sequence[int]) -> list[str]:
    """Share of wrong positions, times the other's, and McNemar's exact test that both are as often wrong."""
    counts = [len(of_prompt) for of_prompt in wrong]
    share, times = ratio(counts, positions), ratio(counts, [len(of_prompt) for of_prompt in beside])
    only, only_other = discordant(wrong, beside)
    test = binomtest(only, only + only_other).pvalue if only + only_other else 1.0
    return [
        f"{share.value:.1%} [{share.low:.1%}–{share.high:.1%}]",
        f"{times.value:.2f} [{times.low:.2f}–{times.high:.2f}]",
        f"{only} : {only_other}, p {test:.2g}",
    ]


def lines(results: dict[str, Any], beside: str) -> list[str]:
    """A table for each domain."""
    found = []
    heads = ["own head", "head copied"]
    columns = [f"{head}: wrong | × {beside} | alone" for head in heads]
    for domain in ("code", "mixed"):
        own = [i for i, prompt in enumerate(results["prompts"]) if prompt["domain"] == domain]
        positions = [results["prompts"][i]["positions"] for i in own]
        found += [
            f"| {domain}: {len(own)} prompts, {sum(positions)} positions | bits | {' | '.join(columns)} |",
            f"| --- | --- |{' --- |' * 3 * len(heads)}",
        ]
        wrong = {
            (name, head): [list(map(int, variant["wrong"][head][i].split())) for i in own]
            for name, variant in results["variants"].items()
            for head in heads
        }
        for name, variant in results["variants"].items():
            row = [name, f"{variant['bits']:g}"]
            for head in heads:
                row += cells(wrong[name, head], wrong[beside, head], positions)
            found.append(f"| {' | '.join(row)} |")
        found.append("")
    return found


def main() -> int:
    """Print the tables of each file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="RESULTS.json")
    parser.add_argument("--beside", default="packed", help="the copies that others are compared with")
    asked = parser.parse_args()
    for file in asked.files:
        results = read_json(Path(file))
        fitted = ", ".join(f"{count} tokens ({kind})" for kind, count in results["fitted_tokens"].items())
        print("\n".join([f"{results['model']}, fitted on {fitted}", "", *lines(results, asked.beside)]))
    return 0


if __name__ == "__main__":
    run(main)

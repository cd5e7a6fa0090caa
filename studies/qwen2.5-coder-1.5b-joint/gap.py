#!/usr/bin/env python3
"""What a draft's decode speedup is made of, and what each part alone keeps it from.

.venv/bin/python studies/qwen2.5-coder-1.5b-joint/gap.py studies/qwen2.5-coder-1.5b-joint/humaneval/humaneval.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from study_kit import run

from selfspec_tune.draft.rounds import acceptance_rate, num_drafted
from selfspec_tune.report.text import headline_method
from selfspec_tune.results import BenchResult, PairedRun
from selfspec_tune.results.metrics import rounds_of


@dataclass(frozen=True, slots=True)
class Split:
    """Decoding by rounds of drafting and verification, all times in plain decode steps.

    Attributes:
        tokens: tokens a round, the bonus token included.
        drafted: tokens drafted a round.
        acceptance: share of them that was accepted.
        drafting: what a round's drafting took.
        verifying: what a round's verification took.
        other: what a round took besides.
    """

    tokens: float
    drafted: float
    acceptance: float
    drafting: float
    verifying: float
    other: float

    @property
    def round(self) -> float:
        """All of a round."""
        return self.drafting + self.verifying + self.other

    @property
    def speedup(self) -> float:
        """Decode speedup: plain decoding gives one token a step."""
        return self.tokens / self.round

    @property
    def without(self) -> dict[str, float]:
        """Decode speedup with each loss alone undone."""
        return {
            "every drafted token accepted": (self.drafted + 1) / self.round,
            "drafting free": self.tokens / (self.verifying + self.other),
            "verification in a plain step": self.tokens / (self.drafting + min(self.verifying, 1.0) + self.other),
            "nothing beside drafting and verification": self.tokens / (self.drafting + self.verifying),
        }


def split(runs: Sequence[PairedRun]) -> Split | None:
    """The split of all ``runs`` together; None where no round was timed."""
    rounds = rounds_of(runs)
    steps = sum(run.baseline.decode_steps for run in runs)
    acceptance = acceptance_rate(rounds)
    if not steps or acceptance is None:
        return None
    round_seconds = len(rounds) * sum(run.baseline.decode_seconds for run in runs) / steps
    drafting = sum(run.candidate.draft_seconds for run in runs) / round_seconds
    verifying = sum(run.candidate.verify_seconds for run in runs) / round_seconds
    whole = sum(run.candidate.decode_seconds for run in runs) / round_seconds
    return Split(
        tokens=sum(run.candidate.decode_steps for run in runs) / len(rounds),
        drafted=num_drafted(rounds) / len(rounds),
        acceptance=acceptance,
        drafting=drafting,
        verifying=verifying,
        other=max(whole - drafting - verifying, 0.0),
    )


def lines(found: Split | None) -> list[str]:
    """The split as a list, times in plain steps."""
    if found is None:
        return ["- No round was drafted, so there is nothing to split."]
    alone = ", ".join(f"{name} {speedup:.2f}×" for name, speedup in found.without.items())
    return [
        f"- A round drafts {found.drafted:.2f} tokens, of which {found.acceptance:.0%} are accepted, and gives "
        f"{found.tokens:.2f}. In plain steps it takes {found.round:.2f}: drafting {found.drafting:.2f} "
        f"({found.drafting / found.drafted:.3f} a token), verification {found.verifying:.2f}, "
        f"the rest {found.other:.2f}. "
        f"Together {found.speedup:.2f}× decode.",
        f"- With one loss alone undone: {alone}.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The main draft of each bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="BENCH.json")
    for file in parser.parse_args(arguments).files:
        result = BenchResult.load(file)
        method = headline_method(result)
        runs = [one for one in result.runs if method and one.method == method.id]
        print("\n".join([f"{file}:", *lines(split(runs))]))
    return 0


if __name__ == "__main__":
    run(main)

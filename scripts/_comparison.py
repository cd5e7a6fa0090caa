"""What several strategies found under equal time: tables from a comparison's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import _study as study

from selfspec_tune.files import read_json
from selfspec_tune.report import text
from selfspec_tune.results import BenchResult, MethodResult, SkipConfig
from selfspec_tune.search.conclusion import promise_kept


@dataclass(frozen=True, slots=True)
class Found:
    """What ``strategy`` had after ``seconds`` of searching, as the common bench measured it."""

    strategy: str
    seconds: float
    draft: str
    method: MethodResult

    @property
    def name(self) -> str:
        return f"{self.strategy}, {text.duration(self.seconds)}"


def everything_found(out: Path) -> tuple[BenchResult, list[Found]]:
    """The common bench, and what it measured in the order of the comparison."""
    result = BenchResult.load(out / "bench.json")
    methods = {method.id: method for method in result.methods}
    entries = read_json(out / "compare.json")["entries"]
    return result, [Found(e["strategy"], e["seconds"], e["draft"], methods[e["method"]]) for e in entries]


def found_table(found: list[Found]) -> list[str]:
    """What each strategy found."""
    lines = ["| strategy, after | decode | end to end | accepted | MAT | draft |", "| --- " * 6 + "|"]
    for one in found:
        method = one.method
        figures = [text.speedup(method.decode_speedup), text.speedup(method.end_to_end_speedup)]
        figures += [text.percent(method.acceptance_rate), text.figure(method.mean_accepted_tokens, 2)]
        lines.append(f"| {one.name} | {' | '.join(figures)} | {study.without_prior(one.draft)} |")
    return lines


def against(result: BenchResult, found: list[Found]) -> list[str]:
    """Everything of the first strategy against the others' winners, on the prompts of the common bench."""
    ours = [one for one in found if one.strategy == found[0].strategy]
    lines = []
    for one in ours:
        for other in (other for other in found if other.strategy != one.strategy):
            ratio = study.advantage(result, one.method, other.method)
            lines.append(f"- {one.name} decodes {text.speedup(ratio)} as fast as {other.name}{study.judged(ratio)}.")
    return lines


def promises(out: Path, strategies: Sequence[str]) -> list[str]:
    """Of every search: what its finalists' contest on selection prompts promised, and what its test gave."""
    lines = []
    for name in strategies:
        config = SkipConfig.load(out / name / "skip.json")
        promised, obtained = config.provenance["search"]["selection_speedup"], config.score.end_to_end_speedup
        if promised is None or obtained is None:
            lines.append(f"- {name}: no figure.")
        else:
            lines.append(f"- {name}: {promise_kept(study.interval(promised), obtained).rstrip('.')}.")
    return lines

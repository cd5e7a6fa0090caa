"""Several strategies under equal time, their winners side by side on the same unread prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from selfspec_tune.bench.run import contender_id, run_bench
from selfspec_tune.draft import Draft
from selfspec_tune.engine.teacher_forcing import make_scorer
from selfspec_tune.files import write_json_atomic
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, CompareRequest, SearchRequest, StrategyName, log_beside
from selfspec_tune.results import BenchResult, DraftSettings, Score, SkipConfig, SkipLayers
from selfspec_tune.search.calibration import calibrate, spread_windows
from selfspec_tune.search.proxy import Proxy
from selfspec_tune.search.ranking_file import read_ranking
from selfspec_tune.search.records import read_winner
from selfspec_tune.search.run import run_search
from selfspec_tune.search.setting import open_setting
from selfspec_tune.search.study_folder import StudyFolder
from selfspec_tune.search.trajectory import Incumbent, Trajectory, incumbent_at

_HELD_OUT = {"most": 24, "length": 40}


@dataclass(frozen=True, slots=True)
class Entry:
    """What ``strategy`` had found after ``seconds``; ``method``: its id in the bench."""

    strategy: StrategyName
    seconds: float
    draft: Draft
    method: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every strategy's winner, the early ones too, in one bench; and how each came to it.

    ``curves``: by strategy, (seconds, decode speedup predicted on text that no strategy searched on) of
    each best so far.
    """

    entries: list[Entry]
    bench: BenchResult
    curves: dict[StrategyName, list[tuple[float, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the bench."""
        return {
            "schema": "selfspec-tune/compare",
            "version": 1,
            "entries": [
                {"strategy": e.strategy.value, "seconds": e.seconds, "draft": e.draft.describe(), "method": e.method}
                for e in self.entries
            ],
            "curves": {name.value: curve for name, curve in self.curves.items()},
        }


def run_comparison(request: CompareRequest, reporter: Reporter) -> Comparison:
    """Search by each strategy in a folder of its own, then measure their winners interleaved; resumes.

    A strategy whose search was interrupted ends the comparison: the same command goes on.
    """
    for search in [_search_of(request, name) for name in request.strategies]:
        reporter.stage("strategy", search.strategy.value)
        if run_search(search, reporter).interrupted:
            raise KeyboardInterrupt
    files: list[Path] = []
    found: list[tuple[StrategyName, float, Path]] = []
    for name in request.strategies:
        for seconds, file in _skip_files(request, name):
            files.append(file)
            found.append((name, seconds, file))
    out = request.search.out / "bench.json"
    bench = run_bench(BenchRequest(skip_files=tuple(files), uniform_and_random=False, log=log_beside(out)), reporter)
    bench.save(out)
    drafts = [read_winner(file) for file in files]
    entries = [
        Entry(name, seconds, draft, contender_id(draft))
        for (name, seconds, _), draft in zip(found, drafts, strict=True)
    ]
    comparison = Comparison(entries, bench, _curves(request, reporter))
    write_json_atomic(request.search.out / "compare.json", comparison.to_dict())
    return comparison


def _search_of(request: CompareRequest, name: StrategyName) -> SearchRequest:
    return replace(request.search, strategy=name, out=request.search.out / name.value)


def _skip_files(request: CompareRequest, name: StrategyName) -> list[tuple[float, Path]]:
    """The winner's skip.json, and files for what the search would have given at the earlier times asked for."""
    folder = StudyFolder(request.search.out / name.value)
    config = SkipConfig.load(folder.skip)
    incumbents = Trajectory(folder.trajectory).read(config.model.num_layers)
    files = []
    for seconds in request.early_seconds if name in request.early_strategies else ():
        incumbent = incumbent_at(incumbents, seconds)
        if incumbent is not None:
            file = folder.path / f"skip-at-{seconds:.0f}s.json"
            _config_of(incumbent.draft, config).save(file)
            files.append((seconds, file))
    return [*files, (folder.spent_seconds, folder.skip)]


def _config_of(draft: Draft, config: SkipConfig) -> SkipConfig:
    """A file for another draft of the same search; nothing was measured on held-out prompts."""
    return config.model_copy(
        update={
            "skip": SkipLayers.model_validate(draft.skip_set.to_dict()),
            "draft": DraftSettings.model_validate(draft.to_dict()),
            "score": Score(verdict="undecided", split="calibration", num_prompts=0),
        }
    )


def _curves(request: CompareRequest, reporter: Reporter) -> dict[StrategyName, list[tuple[float, float]]]:
    """Every strategy's bests so far, judged alike: by the proxy on answers to selection prompts."""
    setting = open_setting(_search_of(request, request.strategies[0]), reporter)
    workload, num_layers = setting.workload, setting.workload.loaded.num_layers
    first = StudyFolder(request.search.out / request.strategies[0].value)
    costs = read_ranking(first.ranking, num_layers).costs
    answers = calibrate(workload, setting.selection, setting.first_draft(), first.path / "judged.json", reporter)
    spread = spread_windows(answers, seed=request.search.prompts.seed, **_HELD_OUT)
    scorer = make_scorer(workload.runner, workload.loaded, [window for _, window in spread])

    def judged(incumbent: Incumbent) -> tuple[float, float]:
        draft = incumbent.draft
        own = costs.with_vocabulary(draft.vocabulary or workload.runner.vocabulary_size)
        proxy = Proxy(scorer, own, [draft.policy], answer_tokens=round(mean(len(a.tokens) for a in answers)))
        return incumbent.seconds, proxy(draft, "judged").speedup

    return {
        name: [
            judged(incumbent)
            for incumbent in Trajectory(StudyFolder(request.search.out / name.value).trajectory).read(num_layers)
        ]
        for name in request.strategies
    }

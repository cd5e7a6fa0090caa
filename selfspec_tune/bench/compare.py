"""Several strategies under equal time, their winners side by side on the same unread prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from selfspec_tune.bench.run import run_bench
from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.files import write_json_atomic
from selfspec_tune.measure.arms import contender_id
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, CompareRequest, SearchRequest, StrategyName, log_beside
from selfspec_tune.results import BenchResult, DraftSettings, Score, SkipConfig, SkipLayers
from selfspec_tune.search.run import run_search
from selfspec_tune.search.setup import as_begun, open_setup
from selfspec_tune.search.stages.calibration import JUDGED, calibrate
from selfspec_tune.search.stages.proxy import Judge
from selfspec_tune.search.stages.ranking_file import read_ranking
from selfspec_tune.search.starts import check_starts
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import Incumbent, Trajectory, incumbent_at, read_winner


@dataclass(frozen=True, slots=True)
class ComparisonEntry:
    """What ``strategy`` had found after ``seconds``; ``method``: its id in the bench."""

    strategy: StrategyName
    seconds: float
    draft: Draft
    method: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every strategy's winner, the early ones too, in one bench; and how each came to it.

    ``curves``: by strategy, (seconds, decode speedup predicted on answers to the selection prompts, on which no
    strategy searched but each chose its winner) of each best so far.
    """

    entries: list[ComparisonEntry]
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

    A strategy whose search was interrupted ends the comparison: the same command goes on. Raises `UsageError` for the
    folder of a search.
    """
    StudyFolder(request.search.out).check_is_no_search()
    searches = [_search_of(request, name) for name in request.strategies]
    for search in (request.search, *searches):
        check_starts(search)
    for search in searches:
        reporter.stage("strategy", search.strategy.value)
        first = StudyFolder(request.search.out / request.strategies[0].value)
        if run_search(as_begun(search, first.begun), reporter).interrupted:
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
        ComparisonEntry(name, seconds, draft, contender_id(draft))
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
    setting = open_setup(_search_of(request, request.strategies[0]), reporter)
    workload, num_layers = setting.workload, setting.workload.loaded.num_layers
    folders = {name: StudyFolder(request.search.out / name.value) for name in request.strategies}
    found = {name: Trajectory(folder.trajectory).read(num_layers) for name, folder in folders.items()}
    costs = [read_ranking(folder.ranking, num_layers).costs for folder in folders.values()]
    file = folders[request.strategies[0]].path / "judged.json"
    answers = calibrate(workload, setting.selection, setting.first_draft(), file, reporter)
    scorer = JUDGED.scorer(workload, answers, request.search.prompts.seed)
    judge = Judge(scorer, round(mean(len(answer.tokens) for answer in answers)))

    def judged(incumbent: Incumbent) -> tuple[float, float]:
        vocabulary = incumbent.draft.vocabulary or workload.runner.vocabulary_size
        return incumbent.seconds, judge.speedup(incumbent.draft, _that_know(incumbent.draft, costs, vocabulary))

    return {name: [judged(incumbent) for incumbent in incumbents] for name, incumbents in found.items()}


def _that_know(draft: Draft, costs: Sequence[CostModel], vocabulary: int) -> CostModel:
    """The first of several cost models in which every part of the draft was timed; its own strategy's is one."""
    for model in costs:
        with suppress(ValueError):
            known = model.with_vocabulary(vocabulary)
            known.steps(draft)
            return known
    raise ValueError(f"no strategy timed all parts of {draft.describe()}")

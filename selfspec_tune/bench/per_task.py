"""A search over all tasks and one for each, then what each draft is worth on every task.

    split by task ─► search all ─► search each task ─► selection prompts ─► test prompts ─► transfer.json

What one search read is in no other one's test: a prompt is in the same split for its task's search and
for the one over all tasks. Every step resumes by the same command.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfspec_tune.bench.run import run_bench
from selfspec_tune.bench.transfer import NearestTask, Winner, prompt_vectors, transfer
from selfspec_tune.draft import Draft
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import contender_arm, contender_id
from selfspec_tune.measure.contest import Contest
from selfspec_tune.measure.lossless import make_check
from selfspec_tune.measure.workload import WorkItem, Workload, load_some, open_workload, shortened
from selfspec_tune.prompts import Prompt, load_prompts, split_each_task
from selfspec_tune.reporting import Reporter, SilentReporter
from selfspec_tune.requests import BenchRequest, SearchRequest, log_beside
from selfspec_tune.results import BenchResult, PairedRun, SkipConfig, TransferResult
from selfspec_tune.search import budget
from selfspec_tune.search.fitting import new_fit
from selfspec_tune.search.plan import SearchPlan, plan_search
from selfspec_tune.search.run import run_search
from selfspec_tune.search.setup import as_begun, open_setup
from selfspec_tune.search.starts import check_starts
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import read_winner

POOLED = "all"
_FEW_PROMPTS = 8  # of a task: fewer are searched, but tell little


@dataclass(frozen=True, slots=True)
class PerTask:
    """The searches' drafts by task, and the bench that the figures come from."""

    transfer: TransferResult
    bench: BenchResult


def run_per_task(request: SearchRequest, reporter: Reporter) -> PerTask:
    """Search for all tasks of the request's prompts together and for each, then measure all drafts on all tasks.

    Each search has its folder in ``request.out`` and its share of the time limit; with ``trials``, as many
    each. An interrupted search ends everything: the same command goes on. Raises `UsageError` where there is one
    task only or ``request.out`` holds a single search, `PromptError` where a task has too few prompts.
    """
    StudyFolder(request.out).check_is_no_search()
    begun = StudyFolder(request.out / POOLED).begun
    request = as_begun(request, begun)
    searches = split_searches(request)
    for search in (request, *searches.values()):
        check_starts(search)
    _tell_of_few(searches, reporter)
    with StudyFolder(request.out).locked():
        pooled = searches[POOLED].prompts
        workload = open_workload(request.model, pooled, reporter, None if begun is None else begun.runner)
        _check_all(searches, workload)
        for name, search in searches.items():
            reporter.stage("task", name)
            if run_search(search, reporter, workload).interrupted:
                raise KeyboardInterrupt
        return _measured(request, searches, workload.reopened(pooled), reporter)


def plan_per_task(request: SearchRequest, reporter: Reporter) -> dict[str, SearchPlan]:
    """What every one of the searches would do, by its name; writes nothing."""
    begun = StudyFolder(request.out / POOLED).begun
    request = as_begun(request, begun)
    searches = split_searches(request)
    for search in (request, *searches.values()):
        check_starts(search)
    _tell_of_few(searches, reporter)
    pooled = searches[POOLED]
    workload = open_workload(request.model, pooled.prompts, reporter, None if begun is None else begun.runner)
    return {name: plan_search(search, reporter, workload) for name, search in searches.items()}


def split_searches(request: SearchRequest) -> dict[str, SearchRequest]:
    """A request for all tasks together, then one for each; needs no model. Raises `UsageError`."""
    options = request.prompts
    tasks = {prompt.task for prompt in load_prompts(options.source, tasks=options.tasks)}
    if len(tasks) < 2:
        raise UsageError(
            f"`per_task` needs prompts of several tasks; these are all of task {tasks.pop()}. Leave `per_task` out, or "
            "give a set whose rows name their task."
        )
    if POOLED in tasks:
        raise UsageError(
            f"`per_task` calls the search over all tasks {POOLED!r}, and there is a task of that name. Give it another "
            "name, or name the tasks to keep with `tasks`."
        )
    drawn = load_some(options)
    split_each_task(drawn, tasks, seed=options.seed)
    numbers = Counter(prompt.task for prompt in drawn)

    def search(folder: str, tasks: tuple[str, ...]) -> SearchRequest:
        number = sum(numbers[task] for task in tasks)
        timeout = request.timeout_seconds and request.timeout_seconds * _share(number / len(drawn), len(numbers))
        prompts = replace(options, tasks=tasks, num_prompts=number)
        return replace(request, out=request.out / folder, prompts=prompts, timeout_seconds=timeout)

    each = {task: search(_folder_name(task), (task,)) for task in sorted(tasks)}
    return {POOLED: search(POOLED, tuple(each)), **each}


def _share(of_prompts: float, num_tasks: int) -> float:
    """A search's part of the time: half of it in equal parts, half by prompts, which the finalists and the test take.

    ``of_prompts``: its prompts, as a part of the prompts of all tasks.
    """
    return (1 / (num_tasks + 1) + of_prompts / 2) / 2


def _check_all(searches: Mapping[str, SearchRequest], workload: Workload) -> None:
    """Refuse before any search what some search could not do: a prompt that does not fit, too short a share of time.

    Searches that have begun were found to fit.
    """
    for name, search in searches.items():
        folder = StudyFolder(search.out)
        if folder.schedule.exists() or folder.ranking.exists():
            continue
        try:
            silent = SilentReporter()  # it says so when its turn comes
            new_fit(open_setup(search, silent, workload), 0.0, silent)
        except BudgetError as error:
            which = f"{name} (one of {len(searches)} searches that share the time)"
            raise BudgetError(f"{which}: {error}") from error


def _folder_name(task: str) -> str:
    """The task's name where every file system takes it as it is and apart from others, else one made from it."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", task.lower()).strip("-")
    return task if task == plain else f"{plain or 'task'}-{short_hash(task)[:6]}"


def _tell_of_few(searches: Mapping[str, SearchRequest], reporter: Reporter) -> None:
    numbers = {name: search.prompts.num_prompts or 0 for name, search in searches.items()}
    reporter.notice(f"prompts: {', '.join(f'{name} {number}' for name, number in numbers.items())}")
    if min(numbers.values()) < _FEW_PROMPTS:
        reporter.notice(
            f"A task with fewer than {_FEW_PROMPTS} prompts is searched on a single one, which tells little; raise "
            "`num_prompts`."
        )


def _measured(
    request: SearchRequest, searches: Mapping[str, SearchRequest], workload: Workload, reporter: Reporter
) -> PerTask:
    """All drafts on the selection prompts of all tasks, then on their test prompts; and what follows."""
    skip_files = {name: StudyFolder(search.out).skip for name, search in searches.items()}
    winners = [_winner(name, searches[name].out.name, read_winner(file)) for name, file in skip_files.items()]
    read = SkipConfig.load(skip_files[POOLED])
    drawn = load_some(searches[POOLED].prompts)
    reporter.stage("selection", f"the drafts of {len(winners)} searches on prompts of all tasks")
    most = budget.NUM_SELECTION_ITEMS * (len(searches) - 1)
    competing = workload.items(_of_split(drawn, read, "selection")[:most])
    selection = _on_selection(workload, competing, winners, StudyFolder(request.out), reporter)
    files = tuple(skip_files.values())  # the first one's prompts are measured: those of all tasks
    out = request.out / "bench.json"
    bench = run_bench(BenchRequest(skip_files=files, uniform_and_random=False, log=log_beside(out)), reporter, workload)
    bench.save(out)
    reporter.stage("router", "prompts compared by their hidden states")
    known = workload.items(_of_split(drawn, read, "calibration"))
    tested = {run.prompt_hash for run in bench.runs}
    asked = workload.items([prompt for prompt in drawn if prompt.hash in tested])
    result = transfer(winners, bench, selection, _nearest(workload, known, asked), seed=request.prompts.seed)
    result.save(request.out / "transfer.json")
    return PerTask(result, bench)


def _winner(name: str, folder: str, draft: Draft) -> Winner:
    return Winner(name, folder, draft, contender_id(draft))


def _of_split(prompts: Sequence[Prompt], config: SkipConfig, split: str) -> list[Prompt]:
    hashes = config.prompt_hashes(split)
    return [prompt for prompt in prompts if prompt.hash in hashes]


def _on_selection(
    workload: Workload, items: Sequence[WorkItem], winners: Sequence[Winner], folder: StudyFolder, reporter: Reporter
) -> list[PairedRun]:
    """Every winner on selection prompts, as finalists are measured: by this the single draft is chosen."""
    arms = {winner.method: contender_arm(workload, winner.draft) for winner in winners}
    short = [shortened(item, budget.SELECTION_TOKENS) for item in items]
    check = make_check(workload, short)
    return Contest(workload, check, short, list(arms.values()), log=folder.selection).run(reporter)


def _nearest(workload: Workload, known: Sequence[WorkItem], asked: Sequence[WorkItem]) -> dict[str, str]:
    """The task that each asked prompt is most like, by its hash; ``known``: prompts that the searches read."""
    router = NearestTask.of(prompt_vectors(workload, known), [item.prompt.task for item in known])
    vectors = prompt_vectors(workload, asked)
    return {item.prompt.hash: router.pick(vector) for item, vector in zip(asked, vectors, strict=True)}

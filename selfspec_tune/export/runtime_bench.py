"""An exported draft in its runtime: the target alone against the target with it, interleaved by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from selfspec_tune.errors import FileFormatError, PromptError, UsageError
from selfspec_tune.export.manifest import MANIFEST, check_own_code, read_manifest
from selfspec_tune.export.runtimes.completion import Completion, TimedRuntime
from selfspec_tune.files import append_jsonl, first_problem, read_jsonl, short_hash
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.measure.degeneration import judge, of_both
from selfspec_tune.prompts import Prompt, draw_prompts, load_prompts, those_that_fit
from selfspec_tune.provenance import collect
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, DraftFormat, PromptOptions, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import RuntimeBench, RuntimeRun, TaskResult
from selfspec_tune.results.logs import WAYS_OUT, first_difference, heading_of, owned, put_aside

if TYPE_CHECKING:
    from selfspec_tune.measure.workload import WorkItem

_SCHEMA, _VERSION = "selfspec-tune/runtime-bench-log", 1
_ARMS = ("plain", "speculative", "again")
_WARM_UP_TOKENS = 8
_EXPORT = ("format", "model_fingerprint", "settings", "draft_bytes", "files")  # what tells one from another
_RUNS_IN = {format_: RuntimeName.TRANSFORMERS for format_ in DraftFormat} | {DraftFormat.GGUF: RuntimeName.LLAMACPP}


class RuntimeLog:
    """What was measured so far; in memory alone without a ``path``.

    Raises `FileFormatError` where the file is no such log, `UsageError` where it holds another measurement.
    """

    def __init__(self, path: Path | None, measurement: Mapping[str, Any]) -> None:
        self._path = path
        self._heading = {"schema": _SCHEMA, "version": _VERSION, "measurement": dict(measurement)}
        self._has_heading = False
        self.runs: list[RuntimeRun] = []
        rows = read_jsonl(path) if path is not None else []
        if path is None or (heading := heading_of(rows, path, _SCHEMA, _VERSION)) is None:
            return
        self._has_heading = True
        if difference := first_difference(heading["measurement"], measurement):
            raise UsageError(f"{path} holds another measurement: {difference}. {WAYS_OUT}")
        for number, row in enumerate(rows[1:], 2):
            try:
                self.runs.append(RuntimeRun.model_validate(row, strict=True))
            except ValidationError as error:
                problem = first_problem(error)
                raise FileFormatError(
                    f"{path}, line {number} is no answer of a bench: {problem}. {WAYS_OUT}"
                ) from error

    def add(self, run: RuntimeRun) -> None:
        """Keep one answer. Raises `StorageError`."""
        self.runs.append(run)
        if self._path is not None:
            append_jsonl(self._path, *([] if self._has_heading else [self._heading]), run.to_dict())
            self._has_heading = True


@contextmanager
def opened(path: Path | None, measurement: Mapping[str, Any], *, fresh: bool = False) -> Iterator[RuntimeLog]:
    """The log at ``path``, owned until the block ends; ``fresh`` puts an earlier one aside."""
    if path is None:
        yield RuntimeLog(None, measurement)
        return
    with owned(path):
        if fresh and path.exists():
            put_aside(path)
        yield RuntimeLog(path, measurement)


def run_runtime_bench(request: RuntimeBenchRequest, reporter: Reporter) -> RuntimeBench:
    """Answer every prompt by each arm, in turns that rotate from prompt to prompt.

    With ``request.log`` runs are kept as they come, and the same request goes on from them. Raises `UsageError` where
    the folder holds no export for the runtime, or the runtime is not installed, and what loading the target raises.
    """
    import torch

    from selfspec_tune.engine.torch_settings import limit_threads

    manifest = _export(request)
    check_own_code(request.folder, DraftFormat(manifest["format"]))
    reporter.stage("load", f"{manifest['gguf'] or manifest['model']}, alone and with {request.folder}")
    limit_threads(reporter.notice)
    runtime = open_runtime(request, manifest, reporter)
    prompts = _unread(request.prompts, frozenset(manifest["read_prompts"]), reporter)
    items = those_that_fit(prompts, runtime.read, reporter.notice)
    reporter.stage("measure", f"{len(items)} prompts of {request.prompts.max_new_tokens} tokens at most")
    with opened(request.log, _measurement(request, manifest, runtime), fresh=request.fresh) as log:
        _measure(runtime, items, log, reporter)
    about = collect(
        threads=torch.get_num_threads(),
        seed=request.prompts.seed,
        prompts=request.prompts.to_dict(),
        runtime=dict(runtime.measured),
        skip=manifest["skip"],
    )
    return _result(request, manifest, runtime, log.runs, about)


def _measure(runtime: TimedRuntime, items: Sequence[WorkItem], log: RuntimeLog, reporter: Reporter) -> None:
    from selfspec_tune.measure.workload import shortened

    done = {(run.prompt_id, run.arm) for run in log.runs}
    for with_draft in (False, True):  # once, untimed: cold pages would count against whichever comes first
        runtime.answer(shortened(items[0], _WARM_UP_TOKENS), with_draft=with_draft)
    for number, item in enumerate(items):
        turn = number % len(_ARMS)
        for arm in (*_ARMS[turn:], *_ARMS[:turn]):
            if (item.id, arm) not in done:
                log.add(_run(item, arm, runtime.answer(item, with_draft=arm == "speculative")))
        reporter.progress(Progress(number + 1, len(items), detail=item.id))


def open_runtime(request: RuntimeBenchRequest, manifest: dict[str, Any], reporter: Reporter) -> TimedRuntime:
    """The target and its draft, loaded in the runtime that the request names."""
    if request.runtime is RuntimeName.LLAMACPP:
        from selfspec_tune.export.runtimes.llamacpp import TimedLlamaCpp

        return TimedLlamaCpp(request, manifest)
    from selfspec_tune.export.runtimes.hf import TimedTransformers

    return TimedTransformers(request, manifest, reporter)


def _export(request: RuntimeBenchRequest) -> dict[str, Any]:
    """The export's manifest."""
    folder = request.folder
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} holds no {MANIFEST}: give the folder that `selfspec-tune export` made.")
    manifest = read_manifest(folder)
    made = manifest["format"]
    if made not in set(DraftFormat) or _RUNS_IN[DraftFormat(made)] is not request.runtime:
        fit = ", ".join(format_ for format_, runtime in _RUNS_IN.items() if runtime is request.runtime)
        raise UsageError(f"{folder} is an export to {made}; `runtime` {request.runtime} takes those to {fit}.")
    if request.runtime is RuntimeName.LLAMACPP and manifest["gguf"] is None:
        raise FileFormatError(f"{folder / MANIFEST} names no GGUF file. Export it again with `force`.")
    return manifest


def _unread(options: PromptOptions, read: frozenset[str], reporter: Reporter) -> Sequence[Prompt]:
    """As many prompts as were asked for of those that no search read."""
    everything = load_prompts(options.source, tasks=options.tasks, notice=reporter.notice)
    unread = [prompt for prompt in everything if prompt.hash not in read]
    wanted = options.num_prompts or min(len(unread), DEFAULT_NUM_PROMPTS)
    if wanted > len(unread) or not unread:
        raise PromptError(
            f"{options.source} has {len(unread)} prompts that the search did not read; {wanted} were asked for. Lower "
            "`num_prompts` or give other `prompts`."
        )
    return draw_prompts(unread, wanted, seed=options.seed)


def _run(item: WorkItem, arm: Any, answer: Completion) -> RuntimeRun:
    # Where the runtime does not name every token, words tell too.
    said = answer.tokens if len(answer.tokens) == answer.num_tokens else answer.text.split()
    degenerate = judge(said, ended=answer.num_tokens < item.limits.max_new_tokens)
    return RuntimeRun(
        prompt_id=item.id,
        arm=arm,
        num_tokens=answer.num_tokens,
        first_tokens=answer.first_tokens,
        prompt_seconds=answer.prompt_seconds,
        decode_seconds=answer.seconds,
        drafted=answer.drafted,
        accepted=answer.accepted,
        text_hash=short_hash(answer.text),
        degenerate=degenerate,
        too_short=degenerate is None,
    )


def _measurement(request: RuntimeBenchRequest, manifest: dict[str, Any], runtime: TimedRuntime) -> dict[str, Any]:
    """What answers must agree in to be one measurement."""
    return {
        "runtime": runtime.name,
        "target": runtime.target,
        "export": {name: manifest[name] for name in _EXPORT},
        "skip": manifest["skip"],
        "draft_tokens": manifest["draft_tokens"],
        "prompts": request.prompts.to_dict(),
        **runtime.measured,
    }


def _result(
    request: RuntimeBenchRequest,
    manifest: dict[str, Any],
    runtime: TimedRuntime,
    runs: Sequence[RuntimeRun],
    about: dict[str, Any],
) -> RuntimeBench:
    by_arm = {arm: {run.prompt_id: run for run in runs if run.arm == arm} for arm in _ARMS}
    plain, ours = by_arm["plain"], by_arm["speculative"]
    found = {name: of_both(run.degenerate, ours[name].degenerate) for name, run in plain.items()}
    circling = {name for name, degenerate in found.items() if degenerate}
    num_known = sum(degenerate is not None for degenerate in found.values())
    num_too_short = sum(found[name] is None and (run.too_short or ours[name].too_short) for name, run in plain.items())
    drafted, accepted = (sum(getattr(run, name) for run in ours.values()) for name in ("drafted", "accepted"))
    produced = sum(run.num_tokens for run in ours.values())
    return RuntimeBench(
        runtime=runtime.name,
        model=runtime.target,
        draft=str(request.folder),
        draft_tokens=manifest["draft_tokens"],
        decode_speedup=_ratio(plain, ours),
        end_to_end_speedup=_ratio(plain, ours, with_prompt=True),
        again=_ratio(plain, by_arm["again"]),
        tokens_per_second=sum(run.num_tokens for run in plain.values())
        / sum(run.prompt_seconds + run.decode_seconds for run in plain.values()),
        acceptance_rate=accepted / drafted if drafted else None,
        mean_accepted_tokens=produced / max(produced - accepted, 1),
        same_texts=sum(ours[name].text_hash == run.text_hash for name, run in plain.items()),
        num_prompts=len(plain),
        degenerate_share=len(circling) / (num_known + num_too_short) if num_known else None,
        num_too_short=num_too_short,
        without_degenerate=_without(circling, plain, ours),
        provenance=about,
        runs=list(runs),
    )


def _without(circling: Set[str], plain: Mapping[str, RuntimeRun], ours: Mapping[str, RuntimeRun]) -> TaskResult | None:
    """The figures on the other prompts; None where these are all or none."""
    if not circling or len(circling) == len(plain):
        return None
    plain, ours = ({name: run for name, run in arm.items() if name not in circling} for arm in (plain, ours))
    return TaskResult(
        num_prompts=len(plain),
        decode_speedup=_ratio(plain, ours),
        end_to_end_speedup=_ratio(plain, ours, with_prompt=True),
    )


def _decode(run: RuntimeRun) -> float:
    """Seconds a token, so that answers that end elsewhere compare."""
    return run.decode_seconds / max(run.num_tokens - run.first_tokens, 1)


def _ratio(plain: Mapping[str, RuntimeRun], other: Mapping[str, RuntimeRun], *, with_prompt: bool = False) -> Interval:
    """Plain time over the other's, for answers as long as the plain ones."""

    def seconds(run: RuntimeRun, num_tokens: int) -> float:
        decoding = _decode(run)
        return run.prompt_seconds + decoding * (num_tokens - run.first_tokens) if with_prompt else decoding

    lengths = {name: run.num_tokens for name, run in plain.items()}
    baseline, candidate = ([seconds(arm[name], length) for name, length in lengths.items()] for arm in (plain, other))
    return cluster_bootstrap(baseline, candidate, list(lengths))

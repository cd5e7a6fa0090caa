"""``selfspec-tune bench``: measure skip sets on prompts that no search has read; sweeps, other runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.arguments import bench_request, given, parse_sweep_values
from selfspec_tune.cli import bench_options, options, output
from selfspec_tune.cli.exits import at_edge
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import (
    BenchRequest,
    PromptOptions,
    RuntimeBenchRequest,
    RuntimeName,
    SweepRequest,
    log_beside,
)

if TYPE_CHECKING:
    from selfspec_tune.results import BenchResult, RuntimeBench, SweepResult

_PROMPTS = frozenset({"prompts", "num_prompts", "task", "max_new_tokens", "template", "seed"})
_OF_ANY = _PROMPTS | {"runtime", "skip_files", "out", "fresh", "json", "quiet", "debug"}
_LOADING = frozenset({"dtype", "device"})  # what a GGUF file says itself


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """Where a sweep's result is written, as far as it is asked for."""

    csv: Path | None
    parquet: Path | None
    plot: Path | None
    out: Path | None


def run_sweep(request: SweepRequest, files: SweepFiles, *, json: bool, quiet: bool) -> None:
    """Measure, print, write. What would fail only in the end is refused first."""
    if files.plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(files.plot)
    from selfspec_tune.bench import run_sweep as run

    with output.progress(quiet=quiet) as reporter:
        result = run(request, reporter)
    print_sweep_result(result, json=json)  # first, so that a full disk loses no measurement
    _write_sweep(result, files)


def print_sweep_result(result: SweepResult, *, json: bool) -> None:
    """One JSON object, or table and plot for people."""
    from selfspec_tune.report.sweep import print_sweep

    if json:
        output.print_json(result.to_dict())
    else:
        print_sweep(output.result_console(), result)


def _write_sweep(result: SweepResult, files: SweepFiles) -> None:
    from selfspec_tune.export import write_csv, write_parquet

    if files.out is not None:
        result.save(files.out)
    if files.csv is not None:
        write_csv(result, files.csv)
    if files.parquet is not None:
        write_parquet(result, files.parquet)
    if files.plot is not None:
        from selfspec_tune.report.plot import write_plot

        write_plot(result, files.plot)


def refuse_with_runtime(runtime: RuntimeName, asked: Mapping[str, object]) -> None:
    """Raise `UsageError` for an option of ``bench`` that was given and means nothing to the runtime."""
    for name, value in asked.items():
        is_given = value is not None and (value is not False or name == "ngram")  # False: a flag that is not set
        if name in _OF_ANY or not is_given:
            continue
        option = f"--{name.replace('_', '-')}"
        if name not in _LOADING:
            raise UsageError(f"{option} is for a bench in this program's engine; leave it out with --runtime.")
        if runtime is RuntimeName.LLAMACPP:
            raise UsageError(f"{option} is said by the GGUF file; leave it out with --runtime {runtime}.")


def runtime_request(
    runtime: RuntimeName,
    folders: Sequence[Path],
    prompts: PromptOptions,
    loading: Mapping[str, Any],
    out: Path | None,
    *,
    fresh: bool,
) -> RuntimeBenchRequest:
    """A bench of the one export in ``folders``; ``loading``: dtype and device as far as they are given."""
    if len(folders) != 1:
        raise UsageError("--runtime measures one export: give the folder that `selfspec-tune export` made.")
    log = log_beside(out) if out else None
    return RuntimeBenchRequest(folders[0], runtime, prompts, log=log, fresh=fresh, **loading)


def run_in_runtime(request: RuntimeBenchRequest, out: Path | None, *, json: bool, quiet: bool) -> None:
    """Measure one export and print what it gains."""
    from selfspec_tune.export.runtime_bench import run_runtime_bench

    with output.progress(quiet=quiet) as reporter:
        result = run_runtime_bench(request, reporter)
    print_runtime_result(result, json=json)  # first, so that a full disk loses no measurement
    if out is not None:
        result.save(out)


def print_runtime_result(result: RuntimeBench, *, json: bool) -> None:
    """One JSON object, or lines for people."""
    from selfspec_tune.report.bench import print_runtime_bench

    if json:
        output.print_json(result.to_dict())
    else:
        print_runtime_bench(output.result_console(), result)


@at_edge()
def bench(
    skip_files: bench_options.SkipFiles = None,
    model: bench_options.ModelName = None,
    revision: bench_options.Revision = None,
    skip_set: bench_options.SkipSets = None,
    prompts: bench_options.PromptSource = None,
    num_prompts: bench_options.NumPrompts = None,
    task: bench_options.Tasks = None,
    max_new_tokens: bench_options.MaxNewTokens = None,
    temperature: bench_options.Temperature = None,
    top_p: bench_options.TopP = None,
    top_k: bench_options.TopK = None,
    template: bench_options.TemplateName = None,
    seed: bench_options.Seed = None,
    dtype: bench_options.DtypeName = None,
    device: options.Device = None,
    runner: options.RunnerName = None,
    policy: bench_options.Policy = None,
    max_draft_tokens: bench_options.MaxDraftTokens = None,
    exit_threshold: bench_options.ExitThreshold = None,
    ngram: bench_options.Ngram = None,
    draft_precision: bench_options.Precision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    rounds: bench_options.Rounds = None,
    reference_prompts: bench_options.ReferencePrompts = None,
    no_references: bench_options.NoReferences = False,
    rivals: bench_options.Rivals = False,
    draft_model: bench_options.DraftModel = None,
    early_exit: bench_options.EarlyExit = None,
    parts: bench_options.Parts = False,
    allow_calibration: bench_options.AllowCalibration = False,
    runtime: bench_options.RuntimeChoice = None,
    sweep: bench_options.Sweep = None,
    sweep_values: bench_options.SweepValues = None,
    plot: bench_options.Plot = None,
    csv: bench_options.Csv = None,
    parquet: bench_options.Parquet = None,
    spec_bench: bench_options.SpecBench = None,
    out: bench_options.BenchFile = None,
    fresh: bench_options.Fresh = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure skip sets against plain decoding, in interleaved pairs.

    With --runtime, an exported draft in the runtime that it is for: give its folder.
    Model and prompts are those of the study unless other ones are given. With --out, raw runs are
    kept as they come: after Ctrl-C or a crash the same command resumes.
    """
    asked = dict(locals())
    if runtime is not None:
        refuse_with_runtime(runtime, asked)
        output.prepare_outputs(out)
        prompt_options = PromptOptions(
            **given(source=prompts, num_prompts=num_prompts, max_new_tokens=max_new_tokens, template=template),
            **given(seed=seed, tasks=tuple(task) if task else None),
        )
        loading = given(dtype=dtype, device=device)
        timed = runtime_request(runtime, skip_files or [], prompt_options, loading, out, fresh=fresh)
        run_in_runtime(timed, out, json=json, quiet=quiet)
        return
    output.prepare_outputs(csv, parquet, spec_bench, out, plot)
    request = bench_request(
        skip_files=tuple(skip_files or ()),
        skip_sets=tuple(skip_set or ()),
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        runner=runner,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        prompts=prompts,
        num_prompts=num_prompts,
        tasks=task,
        max_new_tokens=max_new_tokens,
        template=template,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        policy=policy,
        max_draft_tokens=max_draft_tokens,
        exit_threshold=exit_threshold,
        ngram=ngram,
        precision=draft_precision,
        rounds=rounds,
        reference_prompts=reference_prompts,
        uniform_and_random=not no_references,
        allow_calibration=allow_calibration,
        rivals=rivals,
        draft_model=draft_model,
        early_exit=early_exit,
        parts=parts,
        log=log_beside(out) if out else None,
        fresh=fresh,
    )
    if sweep is None:
        _refuse_without_sweep(sweep_values=sweep_values, plot=plot)
        _run(request, BenchFiles(csv, parquet, spec_bench, out), json=json, quiet=quiet)
    elif spec_bench is not None:
        raise UsageError("--spec-bench takes the answers of one bench; leave it out with --sweep.")
    else:
        swept = SweepRequest(request, sweep, parse_sweep_values(sweep_values))
        run_sweep(swept, SweepFiles(csv, parquet, plot, out), json=json, quiet=quiet)


@dataclass(frozen=True, slots=True)
class BenchFiles:
    """Where a bench's result is written, as far as it is asked for."""

    csv: Path | None
    parquet: Path | None
    spec_bench: Path | None
    out: Path | None


def _refuse_without_sweep(**given_options: object) -> None:
    for name, value in given_options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for a sweep; name one with --sweep, or leave it out.")


def _run(request: BenchRequest, files: BenchFiles, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.bench import run_bench

    with output.progress(quiet=quiet) as reporter:
        result = run_bench(request, reporter)
    _print(result, json=json)  # first, so that a full disk loses no measurement
    _write(result, files)


def _write(result: BenchResult, files: BenchFiles) -> None:
    from selfspec_tune.export import write_csv, write_parquet, write_spec_bench
    from selfspec_tune.report.text import headline_method

    if files.out is not None:
        result.save(files.out)
    if files.csv is not None:
        write_csv(result, files.csv)
    if files.parquet is not None:
        write_parquet(result, files.parquet)
    if files.spec_bench is not None:
        method = headline_method(result) or result.methods[0]
        written = write_spec_bench(result, method.id, files.spec_bench)
        output.say(f"note: Spec-Bench rows: {', '.join(map(str, written))}", to_errors=True)


def _print(result: BenchResult, *, json: bool) -> None:
    from selfspec_tune.report.bench import print_bench

    if json:
        output.print_json(result.to_dict())
    else:
        print_bench(output.result_console(), result)

"""``selfspec-tune bench``: measure skip sets on prompts that no search has read; sweeps, other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune import arguments
from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import (
    BenchRequest,
    DraftOptions,
    ModelOptions,
    PromptOptions,
    RuntimeBenchRequest,
    RuntimeName,
    SweepRequest,
    log_beside,
)

if TYPE_CHECKING:
    from selfspec_tune.results import BenchResult, RuntimeBench, SweepResult

# What a bench in another runtime knows too; the engine's own is refused there.
_OF_RUNTIMES = ("runtime", "skip_files", "out", "fresh", "json", "quiet", "debug")
_PROMPTS_OF_RUNTIMES = ("prompts", "num_prompts", "tasks", "max_new_tokens", "template", "seed")
_LOADING = ("dtype", "device")  # what a GGUF file says itself


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


def runtime_request(asked: Asked) -> RuntimeBenchRequest:
    """A bench of the one export that is given. Raises `UsageError` for what means nothing to its runtime."""
    runtime: RuntimeName = asked["runtime"]
    for name in asked.given(*(name for name in asked if name not in (*_OF_RUNTIMES, *_PROMPTS_OF_RUNTIMES))):
        if name not in _LOADING:
            raise UsageError(f"`{name}` is for a bench in this program's engine; leave it out with --runtime.")
        if runtime is RuntimeName.LLAMACPP:
            raise UsageError(f"`{name}` is said by the GGUF file; leave it out with --runtime {runtime}.")
    folders, out = asked["skip_files"] or [], asked["out"]
    if len(folders) != 1:
        raise UsageError("--runtime measures one export: give the folder that `selfspec-tune export` made.")
    return RuntimeBenchRequest(
        folders[0],
        runtime,
        arguments.prompt_options(**asked.given(*_PROMPTS_OF_RUNTIMES)),
        log=log_beside(out) if out else None,
        fresh=asked["fresh"],
        **asked.given(*_LOADING),
    )


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


@command("bench")
def bench(asked: Asked) -> None:
    """Measure skip sets against plain decoding, in interleaved pairs.

    With --runtime, an exported draft in the runtime that it is for: give its folder.
    Model and prompts are those of the study unless other ones are given. With --out, raw runs are
    kept as they come: after Ctrl-C or a crash the same command resumes.
    """
    shown, out = {"json": asked["json"], "quiet": asked["quiet"]}, asked["out"]
    if asked["runtime"] is not None:
        timed = runtime_request(asked)
        output.prepare_outputs(out)
        run_in_runtime(timed, out, **shown)
        return
    output.prepare_outputs(*(asked[name] for name in ("csv", "parquet", "spec_bench", "out", "plot")))
    request = arguments.bench_request(
        **asked.of(ModelOptions, PromptOptions, DraftOptions, BenchRequest),
        uniform_and_random=not asked["no_references"],
        log=log_beside(out) if out else None,
    )
    if asked["sweep"] is None:
        for name in asked.given("sweep_values", "plot"):
            raise UsageError(f"`{name}` is for a sweep; name one with --sweep, or leave it out.")
        _run(request, BenchFiles(asked["csv"], asked["parquet"], asked["spec_bench"], out), **shown)
    elif asked["spec_bench"] is not None:
        raise UsageError("--spec-bench takes the answers of one bench; leave it out with --sweep.")
    else:
        swept = SweepRequest(request, asked["sweep"], arguments.parse_sweep_values(asked["sweep_values"]))
        run_sweep(swept, SweepFiles(asked["csv"], asked["parquet"], asked["plot"], out), **shown)


@dataclass(frozen=True, slots=True)
class BenchFiles:
    """Where a bench's result is written, as far as it is asked for."""

    csv: Path | None
    parquet: Path | None
    spec_bench: Path | None
    out: Path | None


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

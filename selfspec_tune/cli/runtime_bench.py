"""``selfspec-tune bench --runtime``: an exported draft in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.cli import output
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import PromptOptions, RuntimeBenchRequest, RuntimeName, log_beside

if TYPE_CHECKING:
    from selfspec_tune.results import RuntimeBench


_PROMPTS = frozenset({"prompts", "num_prompts", "task", "max_new_tokens", "template", "seed"})
_OF_ANY = _PROMPTS | {"runtime", "skip_files", "out", "fresh", "json", "quiet", "debug"}
_LOADING = frozenset({"dtype", "device"})  # what a GGUF file says itself


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
    print_result(result, json=json)  # first, so that a full disk loses no measurement
    if out is not None:
        result.save(out)


def print_result(result: RuntimeBench, *, json: bool) -> None:
    """One JSON object, or lines for people."""
    from selfspec_tune.report.runtime import print_runtime_bench

    if json:
        output.print_json(result.to_dict())
    else:
        print_runtime_bench(output.result_console(), result)

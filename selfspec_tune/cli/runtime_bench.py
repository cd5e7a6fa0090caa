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


def refuse_with_runtime(runtime: RuntimeName, others: Mapping[str, object], loading: Mapping[str, object]) -> None:
    """Raise `UsageError` for an option that means nothing to another runtime; ``loading``: nothing to llama.cpp."""
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"{name} is for a bench in this program's engine; leave it out with --runtime.")
    for name, value in loading.items():
        if value is not None and runtime is RuntimeName.LLAMACPP:
            raise UsageError(f"{name} is said by the GGUF file; leave it out with --runtime {runtime}.")


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
    if out is not None:
        result.save(out)
    if json:
        output.print_json(result.to_dict())
    else:
        _print(result)


def _print(result: RuntimeBench) -> None:
    from selfspec_tune.report import text

    accepted = "none drafted" if result.acceptance_rate is None else f"{result.acceptance_rate:.0%} accepted"
    lines = [
        f"{result.runtime}: {result.model} with {result.draft}, {result.draft_tokens} tokens a draft",
        f"decode      {text.speedup(result.decode_speedup)}",
        f"end to end  {text.speedup(result.end_to_end_speedup)}",
        f"itself      {text.speedup(result.again)} decode: the target alone against itself",
        f"{accepted}, {result.mean_accepted_tokens:.2f} tokens a verification; {result.tokens_per_second:.1f} tokens/s "
        f"by the target alone, {result.num_prompts} prompts",
        f"{result.same_texts} of {result.num_prompts} answers are the target's own",
    ]
    if result.same_texts < result.num_prompts:
        lines += [
            "warning: the others differ: a runtime that verifies several tokens at once may round otherwise than it "
            "does for one. `export --verify`, at --weights f32 for llama.cpp, tells rounding from a wrong draft."
        ]
    for line in lines:
        output.result_console().print(line, markup=False, soft_wrap=True)

"""``selfspec_tune.bench``: a bench from Python, by the same requests as the command's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from selfspec_tune.asked import bench_request
from selfspec_tune.bench.run import run_bench
from selfspec_tune.reporting import Reporter, SilentReporter
from selfspec_tune.requests import log_beside
from selfspec_tune.results import BenchResult


def bench(
    *sources: str | os.PathLike[str],
    model: str | None = None,
    rivals: bool = False,
    parts: bool = False,
    out: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> BenchResult:
    """Measure skip sets against plain decoding, in interleaved pairs, on prompts that no search of theirs read.

    Args:
        sources: what `search` returned, studies, skip.json files, other projects' files, or texts such as
            ``attn 2-9 · mlp 3,5``; none: the newest study under ``studies``.
        model: alias, hub id, directory or GGUF file; None: the one that the first source names.
        rivals: measure what a user would pick instead, too.
        parts: measure what the first draft is made of, too.
        out: write the result there, and raw runs beside it as they come, from which the same call resumes.
        reporter: is told of what happens; None: nobody is.
        options: any other field of `BenchRequest`, and what of the model, the prompts and the drafts is otherwise.

    Raises:
        UsageError: an option is not known or means nothing, or too few unread prompts are left.
        SelfSpecError: the model cannot be had or cannot run here, or a result cannot be written.
    """
    log = None if out is None else log_beside(Path(out))
    request = bench_request(
        skip_sets=tuple(map(os.fspath, sources)), model=model, rivals=rivals, parts=parts, log=log, **options
    )
    result = run_bench(request, reporter or SilentReporter())
    if out is not None:
        result.save(out)
    return result

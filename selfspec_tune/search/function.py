"""``selfspec_tune.search``: a search from Python, by the same requests as the command's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfspec_tune import asked
from selfspec_tune.reporting import Reporter, SilentReporter
from selfspec_tune.search.run import SearchOutcome, run_search


def search(
    model: str | None = None,
    *,
    prompts: str | None = None,
    timeout: str | float | None = None,
    trials: int | None = None,
    out: str | os.PathLike[str] | None = None,
    start_from: Sequence[str] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> SearchOutcome:
    """Find the sub-layers that a model may skip while it drafts for itself, and measure what that is worth.

    Args:
        model: alias, hub id, directory or GGUF file; None: the model that comes with the tool.
        prompts: builtin (None), humaneval, a file or folder, or a preset such as gsm8k.
        timeout: such as ``10m``, or seconds; 45 minutes where neither it nor ``trials`` is given.
        trials: most drafts to measure.
        out: the study's folder, where the same call resumes; None: ``studies/<model>-<prompts>``.
        start_from: skip sets to try first, as files in any dialect, folders of studies or texts.
        reporter: is told of what happens; None: nobody is.
        options: any other field of `ModelOptions`, `PromptOptions`, `DraftOptions`, and ``strategy``.

    Raises:
        UsageError: an option is not known or means nothing, or ``out`` holds something else.
        SelfSpecError: the model cannot be had or cannot run here, or a result cannot be written.
    """
    request = asked.search_request(
        model=model,
        prompts=prompts,
        timeout=timeout,
        trials=trials,
        out=None if out is None else Path(out),
        start_from=None if start_from is None else tuple(start_from),
        **options,
    )
    return run_search(request, reporter or SilentReporter())

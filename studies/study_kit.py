"""What the code beside studies shares: settings that a resumed study keeps to, and lines made from results."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.intervals import Interval
from selfspec_tune.report import text
from selfspec_tune.results import BenchResult, PairedRun
from selfspec_tune.results.logs import first_difference
from selfspec_tune.results.metrics import decode_times

_PART = r"[^\s/,;:'\"()]+"
# Absolute, or from a folder above: what only this machine has.
_PATH = re.compile(rf"(?<![\w.])(?:(?:~|\.{{1,2}})/(?:{_PART}/)*|/(?:{_PART}/)+)({_PART})/?")


def without_paths(value: Any) -> Any:
    """A JSON value whose strings name files and folders of this machine by their last part only."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return _PATH.sub(r"\1", value) if isinstance(value, str) else value


def settle(file: Path, settings: Mapping[str, Any]) -> None:
    """Keep a study's settings in ``file``, or check that a resumed one has the same. Raises `UsageError`."""
    published = without_paths(dict(settings))
    if not file.exists():
        write_json_atomic(file, published)
    elif difference := first_difference(read_json(file), published):
        raise UsageError(
            f"{file.parent} holds a study with other settings: {difference}. Give the same, or another --out."
        )


def run(main: Callable[[], int]) -> NoReturn:
    """End the process as ``main`` does: an error is a line and its exit code, Ctrl-C is 130."""
    try:
        sys.exit(main())
    except SelfSpecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "Interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def command_line() -> str:
    """This process's command as a reader would give it."""
    script = Path(sys.argv[0])
    return f"studies/{script.parent.name}/{script.name} {shlex.join(map(without_paths, sys.argv[1:]))}"


def said(found: Interval) -> dict[str, float | None]:
    """An interval as JSON; None: it has no upper bound."""
    return {"value": found.value, "low": found.low, "high": found.high if math.isfinite(found.high) else None}


def interval(record: Mapping[str, Any]) -> Interval:
    """The inverse of `said`."""
    high = record["high"]
    return Interval(record["value"], record["low"], math.inf if high is None else high)


def machine_line(provenance: Mapping[str, Any]) -> str:
    """Machine, model where there is one, packages and program of a study, in a line."""
    machine, model = provenance["hardware"], provenance.get("model")
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"]
    if model:
        parts = [f"{Path(model['name']).name}, {model['dtype']}, {provenance['runner']} runner", *parts]
    parts.append(", ".join(f"{name} {version}" for name, version in provenance["packages"].items()))
    program = provenance["selfspec_tune"]
    parts.append(f"selfspec-tune {program['version']}, commit {_commit(program['commit'])}")
    return f"{'; '.join(parts)}; {provenance['created'][:10]}."


def checks(result: BenchResult) -> list[str]:
    """When it was measured; the baseline against itself and against ``model.generate``; what makes it doubtful."""
    about = result.provenance
    sessions = about.get("sessions", [])
    line = f"- Measured {str(about.get('created'))[:10]}" + (f" in {len(sessions)} sessions." if sessions[1:] else ".")
    if result.a_a is not None:
        line += f" Baseline against itself: {text.speedup(result.a_a.decode)} decode, {result.a_a.num_prompts} prompts."
    if result.baseline_vs_generate is not None:
        line += f" It is {text.times(result.baseline_vs_generate)} as fast as `model.generate`."
    return [line, *(f"- Warning: {warning}" for warning in result.warnings)]


def runs_of(result: BenchResult, method_id: str) -> list[PairedRun]:
    """The pairs of one method."""
    return [run for run in result.runs if run.method == method_id]


def decoded(runs: Sequence[PairedRun]) -> list[PairedRun]:
    """Pairs of which both arms decoded anything after the prefill."""
    return [run for run in runs if run.baseline.decode_steps and run.candidate.decode_steps]


def prompt_ratios(runs: Sequence[PairedRun]) -> dict[str, float]:
    """Decode speedup by prompt."""
    by_prompt: dict[str, list[PairedRun]] = {}
    for run in decoded(runs):
        by_prompt.setdefault(run.prompt_id, []).append(run)
    ratios = {}
    for prompt_id, of_prompt in by_prompt.items():
        times = decode_times(of_prompt)
        ratios[prompt_id] = sum(times.baseline) / sum(times.candidate)
    return ratios


def _commit(commit: str | None) -> str:
    """Its first digits; provenance marks what differs from it by a plus."""
    changed = " with changes" if str(commit).endswith("+") else ""
    return f"{commit[:7]}{changed}" if commit else "unknown"

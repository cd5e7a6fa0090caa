"""What the study scripts share: settings that a resumed study keeps to, and tables, pure functions over results."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from selfspec_tune.bench.parts import COPIES, COPIES_AND_SKIPS, PARTS, SKIPS
from selfspec_tune.draft import Draft
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.measure.rivals import PROMPT_LOOKUP
from selfspec_tune.report import text
from selfspec_tune.report.tables import lossless
from selfspec_tune.report.verdict import SELF_SPECULATIVE, headline_method
from selfspec_tune.results import BenchResult, MethodResult, PairedRun
from selfspec_tune.run_logs import first_difference
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.statistics import Interval
from selfspec_tune.summary import advantage as advantage_of
from selfspec_tune.summary import decode_times

_PRIOR = re.compile(r", prior(?: [\d.e-]+)+")
_PART = r"[^\s/,;:'\"()]+"
# Absolute, or from a folder above: what only this machine has.
_PATH = re.compile(rf"(?<![\w.])(?:(?:~|\.{{1,2}})/(?:{_PART}/)*|/(?:{_PART}/)+)({_PART})/?")


@dataclass(frozen=True, slots=True)
class Target:
    """Methods named ``method`` should decode ``least`` times as fast as plain decoding, or as the method ``than``."""

    method: str
    sets: tuple[str, ...] = ("humaneval", "builtin")
    least: float = 1.0
    than: str | None = None


# For the 1.5B model on two CPU cores; where a draft skips nothing, its copies are all of it but the lookup.
TARGETS = (
    Target(SKIPS, ("humaneval",), 1.35),
    Target(SKIPS, ("builtin",), 1.15),
    Target(COPIES, ("humaneval",), 2.7),
    Target(COPIES, ("builtin",), 2.6),
    Target(COPIES_AND_SKIPS, ("humaneval",), 2.7),
    Target(COPIES_AND_SKIPS, ("builtin",), 2.6),
    Target(COPIES_AND_SKIPS, than=COPIES),
    Target(SELF_SPECULATIVE, ("humaneval",), 3.8),
    Target(SELF_SPECULATIVE, ("builtin",), 2.8),
    *(Target(SELF_SPECULATIVE, than=part) for part in PARTS),
    Target(SELF_SPECULATIVE, than=PROMPT_LOOKUP),
)


def without_paths(value: Any) -> Any:
    """A JSON value whose strings name files and folders of this machine by their last part only."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return _PATH.sub(r"\1", value) if isinstance(value, str) else value


def run(*command: str) -> None:
    """One of our commands, in a process of its own; its failure ends the study."""
    print(f"$ selfspec-tune {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "selfspec_tune", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def bench(out: Path, *command: str) -> BenchResult:
    """A bench kept in ``out``, which is written when it ends; until then its log resumes it."""
    if not out.exists():
        run("bench", *command, "--out", str(out))
    publish(out)
    return BenchResult.load(out)


def publish(file: Path) -> None:
    """Take folders of this machine out of a result's file; those in prompts and answers are nobody's, and stay."""
    value = read_json(file)
    published = {name: entry if name == "runs" else without_paths(entry) for name, entry in value.items()}
    if published != value:
        write_json_atomic(file, published)


def settle(file: Path, settings: Mapping[str, Any]) -> None:
    """Keep a study's settings in ``file``, or check that a resumed one has the same. Raises `UsageError`."""
    published = without_paths(dict(settings))
    if not file.exists():
        write_json_atomic(file, published)
    elif difference := first_difference(read_json(file), published):
        raise UsageError(
            f"{file.parent} holds a study with other settings: {difference}. Give the same, or another --out."
        )


def command_line() -> str:
    """This process's command as a reader would give it."""
    return f"scripts/{Path(sys.argv[0]).name} {shlex.join(without_paths(sys.argv[1:]))}"


def said(found: Interval) -> dict[str, float | None]:
    """An interval as JSON; None: it has no upper bound."""
    return {"value": found.value, "low": found.low, "high": found.high if math.isfinite(found.high) else None}


def interval(record: Mapping[str, Any]) -> Interval:
    """The inverse of `said`."""
    high = record["high"]
    return Interval(record["value"], record["low"], math.inf if high is None else high)


def without_prior(draft: str) -> str:
    """A draft's description without the ten numbers of its prior."""
    return _PRIOR.sub("", draft)


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


def configuration(result: BenchResult, main: Draft) -> list[str]:
    """What was measured and where, as a table of two columns."""
    about = result.provenance
    machine, prompts, program = (about.get(name) or {} for name in ("hardware", "prompts", "selfspec_tune"))
    model = result.model
    rows = {
        "model": f"{Path(model.name or model.id).name}, {model.num_layers} layers, fingerprint `{model.fingerprint}`",
        "draft": without_prior(main.describe()),
        "machine": f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"{machine.get('memory_gib')} GiB" + (f", {machine['gpu']}" if machine.get("gpu") else ""),
        "format": f"{model.dtype} on {model.device}, {about.get('runner')} runner, batch 1",
        "text": f"at most {prompts.get('max_new_tokens')} new tokens, temperature {prompts.get('temperature')}, "
        f"seed {prompts.get('seed')}; {'some prompts' if result.in_sample else 'no prompt'} that the search had read",
        "packages": ", ".join(f"{name} {version}" for name, version in (about.get("packages") or {}).items()),
        "program": f"selfspec-tune {program.get('version')}, commit {_commit(program.get('commit'))}",
    }
    return ["| | |", "| --- | --- |", *(f"| {name} | {said} |" for name, said in rows.items())]


def methods_table(result: BenchResult) -> list[str]:
    """A row for each method: its figures, or why it could not run."""
    lines = [
        "| method | decode | end to end | accepted | MAT | drafting | verifying | output | prompts |",
        "| --- " * 9 + "|",
    ]
    for method in result.methods:
        if method.unavailable:
            lines.append(f"| {label(method, result)} | not available: {_cell(method.unavailable)} |" + " |" * 7)
            continue
        runs = runs_of(result, method.id)
        shares = [_share(runs, part) for part in ("draft_seconds", "verify_seconds")]
        figures = [text.speedup(method.decode_speedup), text.speedup(method.end_to_end_speedup)]
        figures += [text.percent(method.acceptance_rate), text.figure(method.mean_accepted_tokens, 2)]
        figures += [*map(text.percent, shares), lossless(method.lossless, full=True), str(method.num_prompts)]
        lines.append(f"| {label(method, result)} | {' | '.join(figures)} |")
    return lines


def methods_list(results: Mapping[str, BenchResult]) -> list[str]:
    """How each method of any bench drafts, once."""
    about = {
        label(method, result): without_prior(method.description)
        for result in results.values()
        for method in result.methods
        if method.description and not method.unavailable
    }
    return [f"- {name}: {said}" for name, said in about.items()]


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


def spread(result: BenchResult) -> str:
    """The least, the median and the largest decode speedup of the main draft over the prompts."""
    main = headline_method(result)
    ratios = prompt_ratios(runs_of(result, main.id)) if main and main.decode_speedup else {}
    if not ratios:
        return "No spread over prompts: the main draft has no decode speedup."
    low, high = min(ratios, key=lambda prompt: ratios[prompt]), max(ratios, key=lambda prompt: ratios[prompt])
    slower = sum(ratio < 1 for ratio in ratios.values())
    return (
        f"Main draft by prompt, decode, measured once each: {ratios[low]:.2f}× ({low}) at least, "
        f"{median(ratios.values()):.2f}× in the median, {ratios[high]:.2f}× ({high}) at most; "
        f"{slower} of {len(ratios)} below 1."
    )


def target_table(results: Mapping[str, BenchResult], targets: Sequence[Target] = TARGETS) -> list[str]:
    """Every target on each of its sets that was measured: asked for, found, met or missed."""
    lines = ["| set | method | decode at least | found | |", "| --- " * 5 + "|"]
    for target in targets:
        asked = f"that of {target.than}" if target.than else f"{target.least:.2f}×"
        for name in (name for name in target.sets if name in results):
            rows = list(_judged(target, results[name]))
            for method, found, said in rows or [(target.method, "not a part of this draft", "–")]:
                lines.append(f"| {name} | {method} | {asked} | {found} | {said} |")
    return lines


def _judged(target: Target, result: BenchResult) -> Iterator[tuple[str, str, str]]:
    """(method, figures, met or missed) for each row of the bench that the target is about."""
    for method in _rows(target.method, result):
        found = method.decode_speedup
        if target.than is not None:
            others = [other for other in result.methods if other.name == target.than]
            if not others:
                continue
            found = advantage(result, method, others[0])
            if others[0].unavailable:
                yield label(method, result), f"{target.than} could not run", "–"
                continue
        figures = text.speedup(found) + (" of it" if found and target.than else "")
        yield label(method, result), figures, _verdict(found, target.least)


def _rows(name: str, result: BenchResult) -> list[MethodResult]:
    """The main draft, or the methods of a name; for skips alone also further skip sets that were given."""
    main = headline_method(result)
    if name == SELF_SPECULATIVE:
        return [main] if main else []
    names = {name, SELF_SPECULATIVE, "self-sd", "swift"} if name == SKIPS else {name}
    return [method for method in result.methods if method.name in names and method != main]


def _verdict(found: Any, least: float) -> str:
    if found is None:
        return "no figure"
    holds = found.low < least < found.high
    return ("**met**" if found.value >= least else "**missed**") + ("; the interval holds it" if holds else "")


def advantage(result: BenchResult, ours: MethodResult, theirs: MethodResult) -> Interval | None:
    """How many times as fast as ``theirs`` our method decodes the prompts that both did; None if one was lossy."""
    if ours.decode_speedup is None or theirs.decode_speedup is None:
        return None
    return advantage_of(runs_of(result, ours.id), runs_of(result, theirs.id), decode_times)


def judged(ratio: Interval | None) -> str:
    """What a ratio of two methods says, to follow it in a sentence."""
    if ratio is None:
        return " (one of them was lossy)"
    if ratio.high < 1:
        return ": **slower**"
    return ": faster" if ratio.low > 1 else ": the same within the interval"


# From runs


def label(method: MethodResult, result: BenchResult) -> str:
    """A method's name; its skip set besides where several methods share the name."""
    if sum(other.name == method.name for other in result.methods) < 2 or method.skip is None:
        return method.name
    main = " (main)" if method == headline_method(result) else ""
    skipped = SkipSet(result.model.num_layers, tuple(method.skip.attention), tuple(method.skip.mlp))
    return f"{method.name}{main} {skipped}"


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


def _share(runs: Sequence[PairedRun], part: str) -> float | None:
    """A part's share of decode time; None where nothing was drafted, or it was not timed apart."""
    if not any(run.candidate.drafted for run in runs):
        return None
    spent = sum(getattr(run.candidate, part) for run in runs)
    return spent / sum(run.candidate.decode_seconds for run in runs) if spent else None


def _commit(commit: str | None) -> str:
    """Its first digits; provenance marks what differs from it by a plus."""
    changed = " with changes" if str(commit).endswith("+") else ""
    return f"{commit[:7]}{changed}" if commit else "unknown"


def _cell(said: str) -> str:
    """Text of one line that ends no cell of a table."""
    return " ".join(said.split()).replace("|", "\\|")

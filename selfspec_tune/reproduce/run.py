"""A study's steps run into a new folder, and its claims judged by what is there then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any

from selfspec_tune.errors import FileFormatError, SelfSpecError, UsageError
from selfspec_tune.files import append_jsonl, read_json, read_jsonl, taken_apart
from selfspec_tune.intervals import Interval
from selfspec_tune.reproduce.plan import Claim, Plan
from selfspec_tune.reproduce.steps import Command, check_inputs, run_command
from selfspec_tune.reproduce.verdicts import Verdict, figure, judge, written
from selfspec_tune.results.logs import first_difference, owned

LOG = "reproduce.jsonl"
_SCHEMA = "selfspec-tune/reproduction"
_WAYS_OUT = "Give the same study and settings to go on, or another `out`."


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its figure as published and as it came out here; None: it was not measured, for the ``reason``.

    ``places``: where each was measured, in a line; None: the file does not say.
    """

    claim: Claim
    published: Interval
    here: Interval | None
    verdict: Verdict
    reason: str
    places: tuple[str | None, str | None]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "says": self.claim.says,
            "file": self.claim.file,
            "figure": written(self.claim.figure),
            "published": plain_interval(self.published),
            "here": None if self.here is None else plain_interval(self.here),
            "verdict": self.verdict.value,
            "reason": self.reason,
            "published_on": self.places[0],
            "here_on": self.places[1],
        }


@dataclass(slots=True)
class Reproduction:
    """What became of a study's steps and claims. ``seconds`` of those steps that have ended, now or before.

    ``failed``: exit codes of those that have not.
    """

    out: Path
    settings: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    claims: list[Judged] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "out": str(self.out),
            "settings": dict(self.settings),
            "ended": self.seconds,
            "failed": self.failed,
            "claims": [claim.to_dict() for claim in self.claims],
        }


def run_reproduction(
    plan: Plan,
    study: Path,
    out: Path,
    settings: Mapping[str, str],
    commands: list[Command],
    *,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Run what has not ended before, then judge the claims of ``study`` by the files in ``out``.

    A step that fails ends no other: those that need what it makes fail in turn. The same call goes on after a crash.

    Raises:
        UsageError: ``out`` is in use, or holds something else than a reproduction of this study by these settings.
        SelfSpecError: what `check_inputs` raises of the steps that are still to be run.
        FileFormatError: a published figure is not where the plan says, or the log is damaged.
        StorageError: ``out`` cannot be written.
    """
    published = [(claim, *_published(claim, study)) for claim in plan.claims]
    found = Reproduction(out, settings)
    _check_free(out)
    asked = {"settings": dict(settings), "steps": {step.name: step.model_dump() for step in plan.steps}}
    ended = _ended(out / LOG, asked)
    check_inputs([command for command in commands if command.name not in ended])
    with owned(out / LOG, "reproduction"):
        found.seconds = _ended(out / LOG, asked)
        if not read_jsonl(out / LOG):
            append_jsonl(out / LOG, {"schema": _SCHEMA, "version": 1, "asked": asked})
        for command in commands:
            if command.name in found.seconds:
                say(f"{command.name}: ended before")
                continue
            say(f"{command.name}: {command}")
            begun = monotonic()
            if code := run_command(command, quiet=quiet):
                found.failed[command.name] = code
                say(f"{command.name}: failed (exit code {code})")
                continue
            found.seconds[command.name] = seconds = round(monotonic() - begun, 1)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            append_jsonl(out / LOG, {"step": command.name, "seconds": seconds, "ended": now})
    found.claims = [_judged(claim, value, document, out) for claim, value, document in published]
    return found


def published_figures(plan: Plan, study: Path) -> list[Interval]:
    """The figure of each claim as it is published. Raises `FileFormatError` where one is not there."""
    return [_published(claim, study)[0] for claim in plan.claims]


def _published(claim: Claim, study: Path) -> tuple[Interval, Any]:
    file = study / claim.file
    document = read_json(file)
    try:
        return figure(document, claim.figure, claim.tolerance), document
    except LookupError as error:
        raise FileFormatError(
            f"{file} lacks the figure of the claim {claim.says!r}, {written(claim.figure)}: {error.args[0]}. "
            "Mend the claim in the study's plan."
        ) from error


def _judged(claim: Claim, published: Interval, document: Any, out: Path) -> Judged:
    here, reason, place = None, "", None
    try:
        found = read_json(out / claim.file)
        place = place_of(found)
        here = figure(found, claim.figure, claim.tolerance)
    except SelfSpecError:
        reason = f"there is no {claim.file} to read"
    except LookupError as error:
        reason = f"{claim.file}: {error.args[0]}"
    else:
        theirs, ours = (_fingerprint(one) for one in (document, found))
        reason = f"measured on other weights ({ours}, published {theirs})" if theirs != ours else ""
    return Judged(claim, published, here, judge(published, here), reason, (place_of(document), place))


def place_of(document: Any) -> str | None:
    """Machine, packages, program and day of a result, in a line; None where it does not say."""
    if not isinstance(document, dict):
        return None
    about = document.get("provenance") or {}
    machine = about.get("hardware") or document.get("machine")
    if not isinstance(machine, dict):
        return None
    counts = [f"{machine[name]} {name}" for name in ("cores", "threads") if machine.get(name)]
    parts = [", ".join([str(machine.get("cpu")), *counts]), str(machine.get("gpu") or "")]
    packages = about.get("packages") or machine.get("packages") or {}
    parts += [", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)]
    program = about.get("selfspec_tune") or {}
    parts += [f"commit {program['commit'][:7]}"] if program.get("commit") else []
    parts += [str(created)[:10]] if (created := about.get("created") or document.get("created")) else []
    return "; ".join(filter(None, parts))


def _fingerprint(document: Any) -> str | None:
    model = document.get("model") if isinstance(document, dict) else None
    return model.get("fingerprint") if isinstance(model, dict) else None


def _check_free(out: Path) -> None:
    """Raise `UsageError` where something else lies than a reproduction."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; expected a folder to be made. Give another `out`.")
    if out.is_dir() and not (out / LOG).exists() and any(file.suffix != ".lock" for file in out.iterdir()):
        raise UsageError(f"{out} holds other files, and no reproduction that could go on. Give another `out`.")


def _ended(log: Path, asked: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the steps that have ended."""
    rows = read_jsonl(log)
    if not rows:
        return {}
    heading, *ended = rows
    if not isinstance(heading, dict) or (heading.get("schema"), heading.get("version")) != (_SCHEMA, 1):
        raise FileFormatError(f"{log} is no log of a reproduction that this program reads. Give another `out`.")
    with taken_apart(log):
        difference = first_difference(heading["asked"], asked)
        seconds = {str(row["step"]): float(row["seconds"]) for row in ended}
    if difference:
        raise UsageError(f"{log.parent} holds a reproduction of something else: {difference}. {_WAYS_OUT}")
    return seconds


def plain_interval(found: Interval) -> dict[str, float | None]:
    """JSON values; None: there is no such bound."""
    bounds = {"value": found.value, "low": found.low, "high": found.high}
    return {name: bound if isfinite(bound) else None for name, bound in bounds.items()}

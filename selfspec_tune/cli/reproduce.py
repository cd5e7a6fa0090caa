"""``selfspec-tune reproduce``: a published study run again, and whether its figures hold here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from selfspec_tune.arguments import STUDIES, slug
from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.cli.exits import RESUMABLE
from selfspec_tune.errors import ModelAccessError, UsageError

if TYPE_CHECKING:
    from selfspec_tune.intervals import Interval
    from selfspec_tune.reproduce import Command, Plan, Reproduction


@command("reproduce", interrupted=RESUMABLE)
def reproduce(asked: Asked) -> None:
    """Run a published study's steps again, and say claim by claim whether its figures hold on this machine.

    A figure differs where the two intervals have nothing in common. It holds where each value lies in the other's
    interval and the one here is at most twice as wide; anything else cannot be told. A figure that differs is a
    finding and no error: the exit code is 1 only where a step failed. After Ctrl-C or a crash the same command goes
    on; steps that have ended are not repeated.
    """
    from selfspec_tune.reproduce import Plan, check_inputs, commands_of, run_reproduction

    study, quiet = asked["study"], asked["quiet"]
    plan = Plan.of(study)
    out = asked["out"] or STUDIES / f"{slug(str(study.resolve()))}-again"
    settings = plan.settings_with(dict(map(_setting, asked["set"] or [])))
    commands = commands_of(plan, study, out, settings, tuple(asked["step"] or ()))
    if asked["dry_run"]:
        _print_plan(plan, study, settings, commands, json=asked["json"])
        try:
            check_inputs(commands)
        except ModelAccessError as error:  # what was asked for, the plan, is there
            _say(f"note: {error} Until it is here, this study cannot run.", quiet=quiet)
        return
    found = run_reproduction(
        plan, study, out, settings, commands, quiet=quiet, say=lambda line: _say(line, quiet=quiet)
    )
    if asked["json"]:
        output.print_json({"study": study.resolve().name, **found.to_dict()})
    else:
        _print(plan, found)
    if found.failed:
        raise typer.Exit(1)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--set {text!r}: expected NAME=VALUE, such as model=models/mine.")
    return name, value


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        output.say(line, to_errors=True)


def _print_plan(plan: Plan, study: Path, settings: dict[str, str], commands: list[Command], *, json: bool) -> None:
    from selfspec_tune.reproduce.run import plain_interval, published_figures
    from selfspec_tune.reproduce.verdicts import written

    figures = published_figures(plan, study)
    if json:
        steps = [{"name": command.name, "command": str(command)} for command in commands]
        claims = [
            {
                "says": claim.says,
                "file": claim.file,
                "figure": written(claim.figure),
                "published": plain_interval(value),
            }
            for claim, value in zip(plan.claims, figures, strict=True)
        ]
        output.print_json({"study": study.resolve().name, "settings": settings, "steps": steps, "claims": claims})
        return
    lines = [plan.about.strip()] if plan.about else []
    lines += ["settings", *(f"  {name} = {value}" for name, value in settings.items())]
    lines += ["steps", *(f"  {command.name}: {command}" for command in commands), "claims"]
    lines += [f"  {_shown(value)}  {claim.says}" for claim, value in zip(plan.claims, figures, strict=True)]
    for line in lines:
        output.say(line)


def _print(plan: Plan, found: Reproduction) -> None:
    from selfspec_tune.report.text import duration, table

    console = output.result_console()
    for where, index in (("published on", 0), ("measured on", 1)):
        for place in dict.fromkeys(claim.places[index] for claim in found.claims if claim.places[index]):
            console.print(f"{where:<13}{place}", markup=False, soft_wrap=True)
    changed = [f"{name} = {value}" for name, value in found.settings.items() if value != plan.settings[name]]
    if changed:
        console.print(f"{'changed':<13}{', '.join(changed)}", markup=False, soft_wrap=True)
    ended = [f"{name} {duration(seconds)}" for name, seconds in found.seconds.items()]
    console.print(f"{'steps ended':<13}{', '.join(ended) or 'none'}", markup=False, soft_wrap=True)
    if found.failed:
        failed = ", ".join(f"{name} (exit code {code})" for name, code in found.failed.items())
        console.print(f"{'steps failed':<13}{failed}", markup=False, soft_wrap=True)
    rows = table("verdict", "here", "published", "claim")
    for claim in found.claims:
        here = _shown(claim.here) if claim.here else "–"
        reason = f" ({claim.reason})" if claim.reason else ""
        rows.add_row(claim.verdict.value, here, _shown(claim.published), f"{claim.claim.says}{reason}")
    console.print(rows)


def _shown(found: Interval) -> str:
    """A figure of any kind, to three digits, with its bounds where they are not the figure itself."""
    value, low, high = (f"{number:#.3g}".removesuffix(".") for number in (found.value, found.low, found.high))
    return value if found.low == found.high else f"{value} [{low}–{high}]"

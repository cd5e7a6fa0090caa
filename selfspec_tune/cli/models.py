"""``selfspec-tune models``: which families are served, and the short names."""

from __future__ import annotations

import dataclasses
from typing import Any

from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command


@command("models")
def models(asked: Asked) -> None:
    """List which models are served, by which runner, and those with a short name; any other hub id works as well."""
    from selfspec_tune.engine.expected import expected_runner, families, service_of_alias
    from selfspec_tune.models.aliases import ALIASES
    from selfspec_tune.plans.refused import NOT_READ, REFUSED, UNPLANNED
    from selfspec_tune.report import models as report

    served = dict(families())
    runners = {name: expected_runner(service_of_alias(alias)) for name, alias in ALIASES.items()}
    if asked["json"]:
        about: dict[str, Any] = {
            "aliases": {
                name: dataclasses.asdict(alias) | {"runner": runners[name].name, "runner_reason": runners[name].reason}
                for name, alias in ALIASES.items()
            },
            "families": {
                name: {"served_by": service.engines, "missing": service.lacking, "reason": service.reason}
                for name, service in served.items()
            },
            "reference_only": UNPLANNED,
            "refused": REFUSED,
            "not_read": sorted(NOT_READ),
        }
        output.print_json(about)
        return
    console = output.result_console()
    report.print_families(console, served)
    report.print_refused(console, UNPLANNED, "on the reference runner alone")
    report.print_refused(console, REFUSED, "refused")
    report.print_aliases(console, ALIASES, {name: runner.name for name, runner in runners.items()})

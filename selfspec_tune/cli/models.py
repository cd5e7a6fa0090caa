"""``selfspec-tune models``: the short names and what they stand for."""

from __future__ import annotations

import dataclasses

from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command


@command("models")
def models(asked: Asked) -> None:
    """List the models that have a short name; any other hub id or directory works as well."""
    from selfspec_tune.engine.expected import expected_runner
    from selfspec_tune.models.aliases import ALIASES
    from selfspec_tune.report.models import print_models

    runners = {alias: expected_runner(model.model_type, model.settings) for alias, model in ALIASES.items()}
    if asked["json"]:
        about = {alias: {"runner": found.name, "runner_reason": found.reason} for alias, found in runners.items()}
        output.print_json({alias: dataclasses.asdict(model) | about[alias] for alias, model in ALIASES.items()})
    else:
        print_models(output.result_console(), ALIASES, {alias: found.name for alias, found in runners.items()})

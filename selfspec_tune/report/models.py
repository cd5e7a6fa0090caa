"""The alias table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from selfspec_tune.models.aliases import Alias
from selfspec_tune.report import text

_REFERENCE = "reference"
_NO_GAIN = "On the reference runner a skipped sub-layer still costs its time, so no skip set can come out faster."


def print_models(console: Console, aliases: Mapping[str, Alias], runners: Mapping[str, str]) -> None:
    """A row an alias: hub id, layers, size, how it is had, and the name of the runner that serves it here."""
    table = text.table("alias", "hub id")
    table.add_column("layers", justify="right")
    table.add_column("params", justify="right")
    table.add_column("access, runner")
    for name, alias in aliases.items():
        about = f"{_access(alias)} {runners[name]}".strip()
        table.add_row(name, Text(alias.hub_id), str(alias.num_layers), params(alias), about)
    console.print(table)
    if _REFERENCE in runners.values():
        console.print(_NO_GAIN)


def params(alias: Alias) -> str:
    """``135M``, ``1.5B``, ``70B``."""
    if alias.params < 1:
        return f"{1000 * alias.params:.0f}M"
    return f"{alias.params:.1f}B" if alias.params < 10 else f"{alias.params:.0f}B"


def _access(alias: Alias) -> str:
    if alias.embedded:
        return "embedded"
    return "gated" if alias.gated else ""

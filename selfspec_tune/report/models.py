"""Which families and which short names there are, and what serves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from selfspec_tune.models.aliases import Alias
from selfspec_tune.report import text

if TYPE_CHECKING:
    from selfspec_tune.engine.expected import Service

_REFERENCE = "reference"
_NO_GAIN = "On the reference runner a skipped sub-layer still costs its time, so no skip set can come out faster."
_WIDE = 80  # columns that hub ids need beside the rest


def print_families(console: Console, families: Mapping[str, Service]) -> None:
    """A row a family: the engines that serve it, and what the others lack; then how many each serves."""
    table = text.table()
    table.add_column("family", max_width=24)
    table.add_column("served by", max_width=18)
    table.add_column("missing")
    for name, service in families.items():
        table.add_row(name, served_by(service), "\n".join(missing(service)))
    console.print(table)
    console.print(summary(families))


def print_refused(console: Console, refused: Mapping[str, str], title: str) -> None:
    """A row a reason, with the families that have it."""
    table = text.table(title, "families")
    for reason, names in by_reason(refused).items():
        table.add_row(reason, ", ".join(names))
    console.print(table)


def print_aliases(console: Console, aliases: Mapping[str, Alias], runners: Mapping[str, str]) -> None:
    """By family, a row an alias: hub id, layers, size, how it is had, and the runner that serves it here."""
    is_wide = console.width >= _WIDE
    table = text.table()
    table.add_column("alias", no_wrap=True, min_width=max(map(len, aliases)))
    if is_wide:
        table.add_column("hub id")
    for header in ("layers", "params"):
        table.add_column(header, justify="right", min_width=len(header))
    table.add_column("access, runner", no_wrap=True, min_width=len("gated reference"))
    for model_type in dict.fromkeys(alias.model_type for alias in aliases.values()):
        table.add_section()
        table.add_row(f"[bold]{model_type}[/bold]")
        for name, alias in aliases.items():
            if alias.model_type == model_type:
                hub_id = [Text(alias.hub_id)] if is_wide else []
                about = f"{_access(alias)} {runners[name]}".strip()
                table.add_row(name, *hub_id, str(alias.num_layers), params(alias), about)
    console.print(table)
    if _REFERENCE in runners.values():
        console.print(_NO_GAIN)


def served_by(service: Service) -> str:
    """The engines that serve it, or that only the reference runner does."""
    return " ".join(service.engines) or _REFERENCE


def missing(service: Service) -> Iterator[str]:
    """A line for each lack: the engines that have it, and what they lack; or why there is no plan."""
    if service.reason is not None:
        yield service.reason
    for lacking in dict.fromkeys(lacking for lacking in service.lacking.values() if lacking):
        engines = [name for name, its in service.lacking.items() if its == lacking]
        yield f"{', '.join(engines)}: {', '.join(lacking)}"


def summary(families: Mapping[str, Service]) -> str:
    """How many rows each engine serves, and how many families they are of: some have several variants."""
    kinds = {name.partition(",")[0] for name in families}
    names = dict.fromkeys(name for service in families.values() for name in service.lacking)
    served = ", ".join(f"{name} serves {sum(name in its.engines for its in families.values())}" for name in names)
    return f"Of {len(families)} rows of {len(kinds)} families, {served}."


def by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that share each reason."""
    return {reason: [name for name, its in refused.items() if its == reason] for reason in refused.values()}


def params(alias: Alias) -> str:
    """``135M``, ``1.5B``, ``70B``."""
    if alias.params < 1:
        return f"{1000 * alias.params:.0f}M"
    return f"{alias.params:.1f}B" if alias.params < 10 else f"{alias.params:.0f}B"


def _access(alias: Alias) -> str:
    if alias.embedded:
        return "embedded"
    return "gated" if alias.gated else ""

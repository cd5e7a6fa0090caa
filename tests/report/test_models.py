"""What `selfspec_tune.report.models` prints of families and of short names."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from selfspec_tune.engine.expected import Service
from selfspec_tune.models.aliases import ALIASES, Alias
from selfspec_tune.plans import Feature
from selfspec_tune.plans.refused import REFUSED, UNPLANNED
from selfspec_tune.report.models import params, print_aliases, print_families, print_refused

WHOLE = Service(None, {"native": (), "fast": ()})
PART = Service(None, {"native": (Feature.SINKS, Feature.WINDOW), "fast": ()})
NONE = Service(None, {"native": (Feature.SINKS,), "fast": (Feature.SINKS,)})
LONG = Service("its rotary positions depend on the length", {})


def console(width: int) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width), stream


def test_a_family_is_printed_with_what_serves_it_and_what_is_missing() -> None:
    target, stream = console(100)
    print_families(target, {"a": WHOLE, "b": PART, "c": NONE, "c, long": LONG})
    rows = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "a native fast" in rows
    assert f"b fast native: {Feature.SINKS}, {Feature.WINDOW}" in rows
    assert f"c reference native, fast: {Feature.SINKS}" in rows
    assert "c, long reference its rotary positions depend on the length" in rows
    assert rows[-1] == "Of 4 rows of 3 families, native serves 1, fast serves 2."


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_fit_the_terminal_with_names_printed_whole(width: int) -> None:
    target, stream = console(width)
    print_families(target, {"exaone4, with windows": PART})
    print_refused(target, UNPLANNED, "on the reference runner alone")
    print_refused(target, REFUSED, "refused")
    print_aliases(target, ALIASES, dict.fromkeys(ALIASES, "reference"))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = set(stream.getvalue().replace(",", " ").split())
    assert not {*ALIASES, *REFUSED, *UNPLANNED} - words
    hub_ids = {alias.hub_id for alias in ALIASES.values()}
    assert (hub_ids <= words) == (width == 120)


def test_aliases_stand_below_their_family() -> None:
    target, stream = console(120)
    print_aliases(target, ALIASES, dict.fromkeys(ALIASES, "native") | {"gemma-2-2b": "reference"})
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[lines.index(["gemma2"]) + 1] == ["gemma-2-2b", "google/gemma-2-2b", "26", "2.6B", "gated", "reference"]
    assert "On the reference runner a skipped sub-layer still costs its time" in stream.getvalue()
    target, stream = console(120)
    print_aliases(target, ALIASES, dict.fromkeys(ALIASES, "native"))
    assert "reference" not in stream.getvalue()


@pytest.mark.parametrize(("billions", "written"), [(0.135, "135M"), (1.54, "1.5B"), (69.0, "69B")])
def test_parameter_counts_are_rounded(billions: float, written: str) -> None:
    assert params(Alias("org/x", 4, billions)) == written

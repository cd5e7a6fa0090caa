"""Which engines serve an architecture, told from its configuration alone (`selfspec_tune.engine.expected`)."""

from __future__ import annotations

import pytest

from selfspec_tune.engine import expected
from selfspec_tune.engine.expected import Expected, Service, expected_runner, families, service_of, service_of_alias
from selfspec_tune.models import ALIASES
from selfspec_tune.plans import Feature
from selfspec_tune.plans.registry import FAMILIES
from selfspec_tune.plans.variants import VARIANTS

SINKS = (Feature.SINKS,)


def test_every_family_has_rows_and_its_usual_one_has_a_plan() -> None:
    rows = dict(families())
    assert len(rows) == len(FAMILIES) + sum(len(words) - 1 for words in VARIANTS.values())
    assert {name: rows[name].reason for name in FAMILIES if rows[name].reason is not None} == {}


def test_every_alias_is_of_a_family_with_a_plan() -> None:
    reasons = {name: service_of_alias(alias).reason for name, alias in ALIASES.items()}
    assert {name: reason for name, reason in reasons.items() if reason is not None} == {}


def test_a_setting_decides_what_is_missing() -> None:
    plain, windows = service_of("mistral", {"sliding_window": None}), service_of("mistral", {"sliding_window": 8})
    assert plain.engines == ("native", "graphs", "fast")
    assert {*windows.lacking} == {*plain.engines}


@pytest.mark.parametrize(
    ("service", "has_native", "runner"),
    [
        (Service("it is odd", {}), True, Expected("reference", "it is odd")),
        (Service(None, {"native": (), "graphs": (), "fast": ()}), True, Expected("native")),
        (
            Service(None, {"native": (), "graphs": (), "fast": ()}),
            False,
            Expected("fast", "there are no native kernels, nor a compiler"),
        ),
        (
            Service(None, {"native": SINKS, "graphs": SINKS, "fast": ()}),
            True,
            Expected("fast", "the native kernels have no attention sinks"),
        ),
        (
            Service(None, {"native": (), "graphs": (), "fast": SINKS}),
            True,
            Expected("reference", "our own loops have no attention sinks"),
        ),
    ],
)
def test_the_runner_is_the_first_that_serves(
    service: Service, has_native: bool, runner: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "obtainable", lambda: has_native)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert expected_runner(service) == runner

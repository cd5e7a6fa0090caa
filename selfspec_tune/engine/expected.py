"""Which engines serve an architecture, and which one it is expected to get here, told from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from selfspec_tune.engine.kernels.build import obtainable
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import lack, missing
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.aliases import Alias
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.plans import Feature, plan_of
from selfspec_tune.plans.registry import FAMILIES
from selfspec_tune.plans.variants import usual, variants

_IN_WORDS: dict[type[FastRunner], str] = {
    NativeRunner: "the native kernels",
    GraphedRunner: "the captured graphs",
    FastRunner: "our own loops",
}
ENGINES = tuple(engine.name for engine in _IN_WORDS)


@dataclass(frozen=True, slots=True)
class Service:
    """What our engines can do for an architecture.

    Attributes:
        reason: why it has no plan, so that the reference runner alone is left; None: it has one.
        lacking: by engine, what it lacks; nothing where it serves.
    """

    reason: str | None
    lacking: Mapping[str, tuple[Feature, ...]]

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that serve it."""
        return tuple(name for name, lacking in self.lacking.items() if not lacking)


@dataclass(frozen=True, slots=True)
class Expected:
    """The runner's name, and why it is no faster one."""

    name: str
    reason: str | None = None


def service_of(model_type: str, settings: Mapping[str, Any]) -> Service:
    """Which engines serve an architecture whose configuration has ``settings`` otherwise than by default.

    Nothing is built, downloaded or measured: a loaded model must still have the tensors that its plan says.
    """
    try:
        with quietly():
            plan = plan_of(AutoConfig.for_model(model_type, **settings).to_dict())
    except UnsupportedModelError as error:
        return Service(str(error), {})
    return Service(None, {engine.name: missing(plan, engine.SERVES) for engine in _IN_WORDS})


def service_of_alias(alias: Alias) -> Service:
    """Which engines serve what a short name stands for."""
    return service_of(alias.model_type, {**usual(alias.model_type), **alias.settings})


def families() -> Iterator[tuple[str, Service]]:
    """Every family that has a plan, in its variants, by name."""
    for model_type in sorted(FAMILIES):
        for name, settings in variants(model_type):
            yield name, service_of(model_type, settings)


def expected_runner(service: Service) -> Expected:
    """What ``auto`` would take here for an architecture; the choice itself still proves equality, and times."""
    if service.reason is not None:
        return Expected(ReferenceRunner.name, service.reason)
    if lacking := service.lacking[FastRunner.name]:
        return Expected(ReferenceRunner.name, lack(lacking, _IN_WORDS[FastRunner]))
    first = GraphedRunner if torch.cuda.is_available() else NativeRunner
    if lacking := service.lacking[first.name]:
        return Expected(FastRunner.name, lack(lacking, _IN_WORDS[first]))
    if first is NativeRunner and not obtainable():
        return Expected(FastRunner.name, "there are no native kernels, nor a compiler")
    return Expected(first.name)

"""Whether the probe notices, in bfloat16, that a mixture of experts is computed wrong."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from selfspec_tune.engine.choice import choose_runner
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.router import Router
from selfspec_tune.engine.near_probe import quieter
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.engine_kit import load, needs_compiler
from tests.families import FAMILIES

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    config = AutoConfig.for_model(**FAMILIES["exaone_moe"].config)
    return load(kit.save_random(config, tmp_path_factory.mktemp("mixture")), "bfloat16")


def _weighed(call: Call, *given: Any) -> Any:
    experts, weights = call(*given)
    return experts, 1.3 * weights


def _alone(call: Call, block: Experts, hidden: Any, routed: Any) -> Any:
    return routed


def _swapped(call: Call, block: Experts, number: int, hidden: Any) -> Any:
    return call(block, {0: 1, 1: 0}.get(number, number), hidden)


def _fewer(call: Call, router: Router, hidden: Any, chosen: int) -> Any:
    experts, weights = call(router, hidden, chosen)
    weights[:, -1] = 0
    return experts, weights


def _only_briefly(call: Call, runner: FastRunner, tokens: Any, **given: Any) -> Any:
    """Long prompts are run as if their first half were not there."""
    if given.get("last_only") and len(tokens) > 33:
        tokens = [tokens[-1]] * (len(tokens) // 2) + list(tokens[len(tokens) // 2 :])
    return call(runner, tokens, **given)


FAULTS: dict[str, tuple[type, str, Call]] = {
    "experts weigh too much": (Router, "__call__", _weighed),
    "the shared expert is missing": (Experts, "_beside", _alone),
    "two of eight experts are swapped": (Experts, "_expert", _swapped),
    "the last chosen expert is left out": (Router, "__call__", _fewer),
    "long prompts are read wrong": (FastRunner, "forward", _only_briefly),
}


def test_a_sound_mixture_is_served(loaded: LoadedModel) -> None:
    assert choose_runner(loaded, "fast").name == "fast"


@needs_compiler
def test_a_mixture_whose_choices_are_close_is_served(tmp_path: Path) -> None:
    # Rounding moves everything at many positions, and did at all that read a prompt's keys and values.
    config = AutoConfig.for_model(**FAMILIES["mixtral"].config | {"num_hidden_layers": 6})
    assert choose_runner(load(kit.save_random(config, tmp_path), "bfloat16"), "native").name == "native"


def test_one_position_that_is_no_number_is_enough() -> None:
    assert quieter(torch.tensor([0.1, 0.3, 0.2, 0.4])) == pytest.approx(0.1)
    assert quieter(torch.tensor([0.1, 0.3, nan, 0.4])).isnan()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mixture_that_is_computed_wrong_is_not_served(
    loaded: LoadedModel, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, wrong = FAULTS[fault]
    call = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: wrong(call, *given, **named))
    with pytest.raises(UnsupportedModelError, match="its logits differ from the reference"):
        choose_runner(loaded, "fast")

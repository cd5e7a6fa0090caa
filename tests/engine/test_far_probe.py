"""Engines that are right in short texts and wrong far into a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import choose_runner, far_probe
from selfspec_tune.engine.far_probe import FarProbe
from selfspec_tune.engine.layers.attention import Attention, Projected
from selfspec_tune.engine.layers.cache import CacheState, seen
from selfspec_tune.engine.layers.rope import Rotation
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.near_probe import NearProbe
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.plans import registry
from selfspec_tune.plans.attention import Reach, ReachKind
from selfspec_tune.plans.families import llama
from tests import kit
from tests.engine_kit import RUNNERS, decode, load, of_type, prompt_tokens

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir)


def _far_difference(runner: FastRunner, loaded: LoadedModel) -> float:
    return FarProbe(loaded, ReferenceRunner(loaded)).difference(runner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
def test_a_right_runner_is_right_at_the_end_of_the_context(tiny_llama_dir: Path, name: str, dtype: str) -> None:
    loaded = load(tiny_llama_dir, dtype)
    runner: Any = RUNNERS[name](loaded)
    assert _far_difference(runner, loaded) < (1e-5 if dtype == "float32" else 0.06)
    assert runner.length == loaded.context_length


# Rules that the reference has, and a wrong plan has not, beyond the positions of a short walk.
RULES: dict[str, tuple[str, dict[str, object]]] = {
    "queries that grow": ("ministral3", {"head_dim": 16, "rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}}),
    "a window": ("mistral", {"sliding_window": 100}),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_begins_far_away_is_seen(tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, settings = RULES[rule]
    monkeypatch.setitem(registry.FAMILIES, model_type, llama.llama)
    of_type(tmp_path, model_type, **settings)
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.06)):
        loaded = load(tmp_path, dtype)
        assert NearProbe(loaded, ReferenceRunner(loaded)).difference(FastRunner(loaded)) < tolerance
        assert _far_difference(FastRunner(loaded), loaded) > 1.5 * tolerance


class _WrongFarRotation(CacheState):
    def allocate(self, capacity: int) -> None:
        super().allocate(capacity)
        for table in self.tables["full"]:
            table[300:] = table[:1]


class _WrongRotation(FastRunner):
    """Its rotary table ends at position 300."""

    def __init__(self, loaded: LoadedModel, notice: object = None) -> None:
        super().__init__(loaded)
        self._state.__class__ = _WrongFarRotation


class _Windowed(Attention):
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        rows, columns = torch.arange(start, start + queries.shape[0]), torch.arange(start + queries.shape[0])
        window = seen(Reach(ReachKind.WINDOW, 200), rows, columns)
        return self.attend_masked(queries, keys, values, window, columns)


class _WindowedRunner(FastRunner):
    """It sees the last 200 positions alone."""

    def __init__(self, loaded: LoadedModel, notice: object = None) -> None:
        super().__init__(loaded)
        for sublayer in self._sublayers[::2]:
            sublayer.__class__ = _Windowed  # type: ignore[assignment]


class _WrongEpsilon(FastRunner):
    def __init__(self, loaded: LoadedModel, notice: object = None) -> None:
        super().__init__(loaded)
        for sublayer in self._sublayers:
            assert sublayer.norm is not None
            sublayer.norm.epsilon = 1e-2


class _Clips(Attention):
    def project(self, stream: Stream, rotation: Rotation) -> Projected:
        queries, keys, values, gate = super().project(stream, rotation)
        return Projected(queries.clamp(-1, 1), keys.clamp(-1, 1), values.clamp(-1, 1), gate)


class _ClippedRunner(FastRunner):
    """It clips what the model does not: the same as a clip that is missing."""

    def __init__(self, loaded: LoadedModel, notice: object = None) -> None:
        super().__init__(loaded)
        for sublayer in self._sublayers[::2]:
            sublayer.__class__ = _Clips  # type: ignore[assignment]


@pytest.mark.parametrize("wrong", [_WrongRotation, _WindowedRunner, _WrongEpsilon, _ClippedRunner])
def test_a_wrong_engine_is_taken_neither_by_itself_nor_by_name(
    loaded: LoadedModel, wrong: type[FastRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FastRunner", "NativeRunner"):
        monkeypatch.setattr(f"selfspec_tune.engine.choice.{name}", wrong)
    notices: list[str] = []
    assert isinstance(choose_runner(loaded, "auto", notices.append), ReferenceRunner)
    assert all("differ from the reference" in notice for notice in notices)
    with pytest.raises(UnsupportedModelError, match="differ from the reference"):
        choose_runner(loaded, "fast")


@pytest.mark.parametrize("wrong", [_WrongRotation, _WindowedRunner])
def test_a_short_walk_alone_would_take_it(loaded: LoadedModel, wrong: type[FastRunner]) -> None:
    assert NearProbe(loaded, ReferenceRunner(loaded)).difference(wrong(loaded)) < 1e-5


def test_the_far_walk_is_where_a_prompt_of_that_length_ends(loaded: LoadedModel) -> None:
    """Keys and values that were taken over are as good as those that were computed."""
    prompt = prompt_tokens(500)
    for make in (FastRunner, ReferenceRunner):
        computed, taken = make(loaded), make(loaded)
        computed.reserve(600)
        taken.reserve(600)
        prefill(computed, prompt)
        layers = [computed.keys_and_values(layer) for layer in range(loaded.num_layers)]
        taken.resume(layers, len(prompt))
        assert taken.length == 500
        torch.testing.assert_close(decode(taken, 7), decode(computed, 7), rtol=0, atol=0)


def test_no_further_than_memory_allows(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FarProbe(loaded, ReferenceRunner(loaded)).position == loaded.context_length - 9
    per_position = 2 * loaded.num_layers * 2 * (kit.HIDDEN // 4) * 4  # keys and values of two heads, float32
    monkeypatch.setattr(far_probe, "_LEAST_BYTES", 200 * per_position)
    monkeypatch.setattr(far_probe, "_SHARE", 0.0)
    assert FarProbe(loaded, ReferenceRunner(loaded)).position == 200 - 9


def test_a_short_context_has_no_far_end(tmp_path: Path) -> None:
    loaded = load(kit.tiny_llama(tmp_path, layers=1, context=50))
    assert FarProbe(loaded, ReferenceRunner(loaded)).position is None
    assert isinstance(choose_runner(loaded, "fast"), FastRunner)


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
def test_the_long_caches_are_let_go(loaded: LoadedModel, name: str) -> None:
    runner: Any = choose_runner(loaded, name, lambda text: None)
    assert runner.capacity == 0
    assert runner.keys_and_values(0)[0].untyped_storage().nbytes() == 0
    fresh: Any = RUNNERS[name](loaded)
    for each in (runner, fresh):
        each.reserve(300)
        each.set_draft(Draft(SkipSet.empty(loaded.num_layers)))
    prompt = prompt_tokens(40)
    torch.testing.assert_close(prefill(runner, prompt), prefill(fresh, prompt), rtol=0, atol=0)
    torch.testing.assert_close(runner.forward(prompt[:5]).logits, fresh.forward(prompt[:5]).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
def test_without_a_cache_nothing_runs(loaded: LoadedModel, name: str) -> None:
    runner: Any = RUNNERS[name](loaded)
    prefill(runner, prompt_tokens(9))
    runner.release()
    with pytest.raises(UsageError, match="the cache holds 0"):
        decode(runner, 5)


def test_memory_that_is_not_there_is_no_reason_to_end(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = CacheState.allocate

    def small_only(self: CacheState, capacity: int) -> None:
        if capacity > 512:
            raise UsageError("No memory for a cache")
        allocate(self, capacity)

    monkeypatch.setattr(CacheState, "allocate", small_only)
    assert isinstance(choose_runner(loaded, "fast"), FastRunner)

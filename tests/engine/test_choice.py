"""Which runner ``auto`` takes: the fastest that is right, by a clock that the tests wind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.engine import Runner, choose_runner
from selfspec_tune.engine.runner import Scores
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.engine_kit import kind_of, load

PROBE = "selfspec_tune.engine.choice"


class _Clock:
    """Stands still but for what the runners' steps say that they took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Timed(FastRunner):
    clock: _Clock
    decode_seconds: float
    verify_seconds: float

    def forward(self, tokens: Sequence[int], **how: Any) -> Scores:
        kind = kind_of(tokens, **how)
        self.clock.now += {"step": self.decode_seconds, "verification": self.verify_seconds}.get(kind, 0.0)
        return super().forward(tokens, **how)


class _Opened:
    """Makes runners of given speed take the places of the native and of the fast one, and chooses."""

    def __init__(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = loaded
        self.notices: list[str] = []
        self._clock = _Clock()
        self._patch = monkeypatch
        self.calls: Counter[str] = Counter()
        monkeypatch.setattr(f"{PROBE}.native_unsupported_reason", lambda loaded: None)
        for owner, method in ((ReferenceRunner, "forward"), (FastRunner, "forward"), (FastRunner, "__init__")):
            self._count(owner, method)

    def _count(self, owner: type[FastRunner | ReferenceRunner], method: str) -> None:
        """Calls of ``method``, of passes the prefills alone."""
        plain = getattr(owner, method)

        def counted(runner: Runner, *arguments: Any, **how: Any) -> object:
            name = kind_of(*arguments, **how) if method == "forward" else method
            if name in ("prefill", method):
                self.calls[f"{runner.name} {name}"] += 1
            return plain(runner, *arguments, **how)

        self._patch.setattr(owner, method, counted)

    def place(self, name: str, decode_seconds: float, verify_seconds: float, **other: object) -> None:
        fields = {"name": name, "decode_seconds": decode_seconds, "verify_seconds": verify_seconds} | other
        made = type(f"Timed{name.title()}", (_Timed,), fields | {"clock": self._clock})
        self._patch.setattr(f"{PROBE}.{name.title()}Runner", made)

    def broken(self, name: str, error: Exception) -> None:
        class Broken(FastRunner):
            def __init__(self, loaded: LoadedModel) -> None:
                raise error

        self._patch.setattr(f"{PROBE}.{name.title()}Runner", Broken)

    def choose(self, choice: str = "auto", begun_with: str | None = None) -> Runner:
        return choose_runner(self.loaded, choice, self.notices.append, begun_with=begun_with, clock=self._clock)


@pytest.fixture
def opened(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> _Opened:
    return _Opened(load(tiny_llama_dir), monkeypatch)


def test_a_faster_runner_is_taken_and_the_notice_says_by_how_much(opened: _Opened) -> None:
    opened.place("native", 0.05, 0.15)
    opened.place("fast", 0.04, 0.06)
    assert opened.choose().name == "fast"
    assert opened.notices == [
        f"{opened.loaded.name} runs on the fast runner: there a decode step and a verification of 4 tokens take "
        "100 ms, and 2.00 times as long on the native runner."
    ]


@pytest.mark.parametrize("fast", [0.1, 0.2, 0.4, 0.096])
def test_the_native_runner_is_taken_unless_another_is_clearly_faster(opened: _Opened, fast: float) -> None:
    opened.place("native", 0.05, 0.05)
    opened.place("fast", fast / 2, fast / 2)
    assert opened.choose().name == "native"
    assert opened.notices == []


def test_a_runner_asked_for_by_name_is_taken_however_slow(opened: _Opened) -> None:
    opened.place("native", 5.0, 5.0)
    opened.place("fast", 0.1, 0.1)
    assert opened.choose("native").name == "native"
    assert opened.notices == []


@pytest.mark.parametrize("begun_with", ["native", "fast", "reference"])
def test_what_is_resumed_keeps_its_runner(opened: _Opened, begun_with: str) -> None:
    opened.place("native", *((5.0, 5.0) if begun_with == "native" else (0.1, 0.1)))
    opened.place("fast", 1.0, 1.0)
    assert opened.choose(begun_with=begun_with).name == begun_with
    assert opened.notices == []


def test_what_is_resumed_runs_on_another_where_its_runner_fails_now(opened: _Opened) -> None:
    opened.broken("native", OSError("no such file"))
    opened.place("fast", 1.0, 1.0)
    assert opened.choose(begun_with="native").name == "fast"
    assert "OSError (no such file)" in opened.notices[0]


def test_a_runner_asked_for_by_name_is_taken_whatever_was_begun_with(opened: _Opened) -> None:
    opened.place("fast", 1.0, 1.0)
    assert opened.choose("fast", begun_with="native").name == "fast"


@pytest.mark.parametrize("error", [RuntimeError("first\nsecond"), AttributeError("first"), MemoryError("first")])
def test_an_engine_that_does_not_open_is_a_reason_for_the_next(opened: _Opened, error: Exception) -> None:
    opened.broken("native", error)
    opened.place("fast", 1.0, 1.0)
    assert opened.choose().name == "fast"
    assert opened.notices == [
        f"{opened.loaded.name} runs without our native kernels, so decoding is slower: "
        f"it failed, {type(error).__name__} (first)."
    ]
    with pytest.raises(UnsupportedModelError, match=rf"cannot serve .*{type(error).__name__} \(first\)"):
        opened.choose("native")


def test_where_no_engine_opens_the_reference_serves(opened: _Opened) -> None:
    opened.broken("native", RuntimeError("one"))
    opened.broken("fast", ValueError())
    assert opened.choose().name == "reference"
    assert "RuntimeError (one)" in opened.notices[0]
    assert "ValueError (ValueError)" in opened.notices[1]


def test_what_the_user_got_wrong_is_the_user_s_to_know(opened: _Opened) -> None:
    opened.broken("native", UsageError("SELFSPEC_TUNE_CPU_LEVEL is 'x', which is no level."))
    with pytest.raises(UsageError, match="no level"):
        opened.choose()


def test_a_short_context_leaves_room_for_the_timed_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = _Opened(load(kit.tiny_llama(tmp_path, context=17)), monkeypatch)
    opened.place("native", 1.0, 1.0)
    opened.place("fast", 0.1, 0.1)
    assert opened.choose().name == "fast"


def _decode_wrongly(runner: FastRunner, tokens: Sequence[int], **how: Any) -> Scores:
    scores = _Timed.forward(runner, tokens, **how)
    return replace(scores, logits=scores.logits + 1.0 * (kind_of(tokens, **how) == "step"))


def _failing(kind: str) -> Callable[..., Scores]:
    def forward(runner: FastRunner, tokens: Sequence[int], **how: Any) -> Scores:
        if kind_of(tokens, **how) == kind:
            raise RuntimeError("no memory")
        return _Timed.forward(runner, tokens, **how)

    return forward


@pytest.mark.parametrize("wrong", [{}, {"forward": _decode_wrongly}])
def test_the_reference_walks_once_for_all_candidates_and_each_is_opened_once(
    opened: _Opened, wrong: dict[str, object]
) -> None:
    """Both are looked at: the second is faster, or the first does not serve."""
    opened.place("native", 1.0, 1.0, **wrong)
    opened.place("fast", 0.1, 0.1)
    assert opened.choose().name == "fast"
    assert opened.calls == {
        "reference prefill": 2,  # to see whether it gives numbers, and on the walk
        "native __init__": 1,
        "native prefill": 1,
        "fast __init__": 1,
        "fast prefill": 1,
    }


def test_what_is_no_faster_need_not_prove_anything(opened: _Opened) -> None:
    opened.place("native", 0.1, 0.1)
    opened.place("fast", 0.1, 0.1, forward=_failing("prefill"))
    assert opened.choose().name == "native"
    assert opened.calls["fast __init__"] == 1
    assert opened.notices == []


@pytest.mark.parametrize("wrong", [_decode_wrongly, _failing("step")])
def test_what_is_faster_and_wrong_is_not_taken(opened: _Opened, wrong: object) -> None:
    opened.place("native", 1.0, 1.0)
    opened.place("fast", 0.1, 0.0, forward=wrong)
    assert opened.choose().name == "native"
    assert opened.notices == []

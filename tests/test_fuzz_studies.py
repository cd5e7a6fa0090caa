"""A study with one damaged file, resumed: it goes on, or names that file and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.errors import FileFormatError
from selfspec_tune.measure.workload import Workload, open_workload
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.search import run_search
from selfspec_tune.search.study import StudyFolder
from tests import kit
from tests.fuzz_kit import A_FEW, damaged, folder, may_be_refused
from tests.search_kit import ScriptedEngine, by_number_skipped, hurry, prompt_file, search_request

_OBJECTS = ("schedule.json", "calibration.json", "preparation.json", "ranking.json", "choice.json", "state.json")
_LINES = ("proxy.jsonl", "journal.log", "selection.jsonl", "test.jsonl")
_FILES = (*_OBJECTS, *_LINES, "study.toml", "trajectory.jsonl", "trials.jsonl", "skip.json", "bench.json")
# What is read only where the file that is made from it is not there yet.
_ONLY_WITHOUT = {
    "proxy.jsonl": "ranking.json",
    "preparation.json": "ranking.json",
    "selection.jsonl": "choice.json",
}


class _Finished:
    """A study that has run to its end, and the model that it was for, open."""

    def __init__(self) -> None:
        self._kept = folder()
        root = Path(self._kept.name)
        model = kit.tiny_llama(root / "model", vocab=256, seed=3, layers=2)
        budget: dict[str, Any] = {"trials": 2, "timeout_seconds": 3600.0}
        self.request = search_request(root / "study", model, prompt_file(root / "set.jsonl", 16), **budget)
        self.workload: Workload = open_workload(self.request.model, self.request.prompts, SilentReporter(), None)
        self.run(self.request)

    def run(self, request: SearchRequest) -> None:
        """Search with an engine that times nothing."""
        with pytest.MonkeyPatch.context() as patch:
            hurry(patch)
            ScriptedEngine(by_number_skipped).install(patch)
            run_search(request, SilentReporter(), self.workload)


@cache
def _finished() -> _Finished:
    return _Finished()


def resume(name: str, content: bytes, trials: int = 2) -> None:
    """Resume a copy of the finished study in which one file has this content."""
    finished = _finished()
    with folder() as place:
        study = Path(place) / "study"
        shutil.copytree(finished.request.out, study)
        if name in _ONLY_WITHOUT:
            (study / _ONLY_WITHOUT[name]).unlink()
        StudyFolder(study).note_finished(None)
        (study / name).write_bytes(content)
        finished.run(replace(finished.request, out=study, trials=trials))


@A_FEW
@given(data=st.data())
def test_a_study_with_a_damaged_file_is_resumed_or_the_file_is_named(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(_FILES))
    content = data.draw(damaged((_finished().request.out / name).read_bytes()))
    trials = data.draw(st.sampled_from([2, 3]))
    may_be_refused(lambda: resume(name, content, trials), "/study")


_SHAPES = (b"null", b"[]", b"5", b"[" * 100_000, b"\xff", b"{")
_STATES = (b'{"spent_seconds": "x"}', b'{"spent_seconds": -1}', b'{"spent_seconds": true}')
_ROWS = (b"null\n", b"[]\n", b"5\n", b'{"method": 1}\n', b"[" * 9999 + b"\n", b"{\n")
_TOML = (
    b"schema = ",
    b"a = " + b"[" * 9999,
    b"a = nan",
    b"a = 1",
    b"\xff",
    b'schema = "selfspec-tune/study"\nversion = true',
)


def _cases() -> Iterator[Any]:
    """Two shapes of each kind of file, and the others with the long tests."""
    by_names = {_OBJECTS: _SHAPES, ("state.json",): _STATES, _LINES: _ROWS, ("study.toml",): _TOML}
    by_names[("journal.log",)] = (b'{"op_code": 99}\n',)
    for names, contents in by_names.items():
        for name in names:
            for number, content in enumerate(contents):
                marks = [pytest.mark.long] if number > 1 else []
                yield pytest.param(name, content, marks=marks, id=f"{name} {content[:16]!r}")


@pytest.mark.parametrize(("name", "content"), list(_cases()))
def test_a_file_of_another_shape_is_named(name: str, content: bytes) -> None:
    with pytest.raises(FileFormatError, match=f"study/{name}"):
        resume(name, content)

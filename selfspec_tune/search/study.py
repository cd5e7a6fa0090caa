"""The folder of a study: what it holds, who may write to it, and how a search resumes in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

from selfspec_tune.checks import number
from selfspec_tune.errors import StorageError, UsageError
from selfspec_tune.files import (
    read_jsonl,
    read_object,
    short_hash,
    sweep_temporaries,
    taken_apart,
    write_json_atomic,
)
from selfspec_tune.prompts import Template
from selfspec_tune.requests import SearchRequest
from selfspec_tune.results import SkipConfig, StudyConfig
from selfspec_tune.results.logs import owned

# What may change between a search and its resumption without changing what it measures.
_BUDGET_FIELDS = {"trials", "timeout_seconds"}
# What older studies do not state: these were resumed with whatever was there.
_LATER_FIELDS = {"model_revision", "template_date"}
_DRAFT_DEFAULTS = "draft_defaults"  # matter only where a search goes on
_OF_SEVERAL = ("compare.json", "transfer.json")
# What decides which tokens are measured; studies of before these were kept resume without the comparison.
_OF_TOKENS = {
    "tokenizer": "another tokenizer",
    "chat_template": "another chat template",
    "eos_token_ids": "other end-of-sequence tokens",
    "prompt_tokens": "other tokens of the same prompts",
}
# What a provenance says of where a session measured.
_OF_PLACE = ("created", "command", "selfspec_tune", "python", "packages", "hardware", "numerics", "numeric_floor")


def vocabulary_hash(tokenizer: Any) -> str:
    """Of a tokenizer's tokens and their ids, added ones included.

    How it splits texts is told by the prompts' own tokens: how that is written down changes from version to version.
    """
    return short_hash(json.dumps(sorted((int(id_), str(token)) for token, id_ in tokenizer.get_vocab().items())))


def template_hash(tokenizer: Any, template: Template) -> str:
    """Of the chat template that prompts are rendered with, empty where they are rendered without one."""
    used = None if template is Template.RAW else tokenizer.chat_template
    return short_hash(json.dumps(used, sort_keys=True)) if used else ""


class StudyFolder:
    """Names of a study's files; every one is written atomically or appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "study.toml"
        self.schedule = path / "schedule.json"
        self.calibration = path / "calibration.json"
        self.preparation = path / "preparation.json"
        self.proxy = path / "proxy.jsonl"
        self.ranking = path / "ranking.json"
        self.trajectory = path / "trajectory.jsonl"
        self.trials = path / "trials.jsonl"
        self.choice = path / "choice.json"
        self.selection = path / "selection.jsonl"
        self.test = path / "test.jsonl"
        self.skip = path / "skip.json"
        self.bench = path / "bench.json"
        self.sessions = path / "sessions.jsonl"
        self.journal = path / "journal.log"
        self._state = path / "state.json"

    @contextmanager
    def locked(self, *, is_read: bool = False) -> Iterator[None]:
        """Own the study: a second search in the same folder is refused. Freed by the system on any exit.

        ``is_read``: that it will only be read, for which a folder that cannot be written needs no owner. Folders
        that are made here and in which nothing is written, for a search that is refused, do not stay.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = self.path / "study.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(owned(self.path, "search", lock))
            except StorageError:
                if not is_read:
                    raise
            else:
                sweep_temporaries(*(file for file in vars(self).values() if file != self.path))
            try:
                yield
            finally:
                with suppress(OSError):  # an open file cannot be deleted everywhere, and another search may begin
                    if made and list(self.path.iterdir()) == [lock]:
                        lock.unlink()
                        for folder in made:  # down to one that another search has put something into
                            folder.rmdir()

    def check_is_no_search(self) -> None:
        """Raise `UsageError` where a single search lies: what several leave would overwrite its files."""
        if self.config.exists():
            raise UsageError(f"{self.path} holds a single search. Give another `out`.")

    def check_is_whole(self) -> None:
        """Raise `UsageError` where results of several searches lie, or files of a search without its study.toml."""
        if self.config.exists():
            return
        if any((self.path / name).exists() for name in _OF_SEVERAL):
            raise UsageError(f"{self.path} holds the results of several searches. Give another `out`.")
        found = [file.name for file in (*self._measured, self.skip, self.bench) if file.exists()]
        if found:
            raise UsageError(
                f"{self.path} holds {', '.join(found)} of a search, but not its study.toml, without which nobody knows "
                "what they were measured with. Put study.toml back, or give another `out`."
            )

    def check(self, config: StudyConfig) -> None:
        """Raise `UsageError` where a resumed search asks for another configuration, or for other tokens."""
        if not self.config.exists():
            return
        known = StudyConfig.load(self.config)
        differences = {
            name: values
            for name, values in known.differences(config).items()
            if name not in (*_BUDGET_FIELDS, _DRAFT_DEFAULTS) and not (name in _LATER_FIELDS and values[0] is None)
        }
        options = {name: values for name, values in differences.items() if name not in _OF_TOKENS}
        if options:
            changed = ", ".join(f"{name} {old} → {new}" for name, (old, new) in options.items())
            raise UsageError(
                f"{self.path} holds a search with another configuration ({changed}). "
                "Use the same options to resume it, or give another `out`."
            )
        tokens = [name for name, (old, _) in differences.items() if old is not None]
        if tokens:
            raise UsageError(
                f"{self.path} holds a search on other tokens: the model now has {_changed(differences, tokens)}. What "
                "was measured cannot be mixed with these. Put the model's files back as they were to resume it, or "
                "give another `out`."
            )

    def check_goes_on(self, config: StudyConfig) -> None:
        """Raise `UsageError` where what was begun drafts by other defaults, with which none of today's compare."""
        begun = self.begun
        if begun is not None and begun.draft_defaults != config.draft_defaults:
            raise UsageError(
                f"{self.path} holds a search that drafts by other defaults ({begun.draft_defaults or 'older ones'}; "
                f"now {config.draft_defaults}). Resume it with the version that began it, or give another `out`."
            )

    @property
    def has_begun(self) -> bool:
        """Whether anything of a search has been measured here."""
        return any(file.exists() for file in self._measured)

    @property
    def _measured(self) -> tuple[Path, ...]:
        """The files that a search measures, in order."""
        return (
            *(self.schedule, self.calibration, self.preparation, self.proxy, self.ranking, self.trajectory),
            *(self.journal, self.trials, self.choice, self.selection, self.test),
        )

    def earlier_provenances(self) -> list[dict[str, Any]]:
        """Where a search measured that kept no sessions, as its skip.json says; empty ones where that is not known.

        None before anything was measured, and as many unknown ones as there were where the list of them is lost.
        """
        if not self.has_begun:
            return []
        rows = (row for file in (self.trials, self.selection, self.test) for row in read_jsonl(file))
        lost = max((row.get("session") or 0 for row in rows), default=0)
        if lost:
            return [{}] * lost
        known = SkipConfig.load(self.skip).provenance if self.skip.exists() else {}
        return [{name: value for name, value in known.items() if name in _OF_PLACE}]

    @property
    def begun(self) -> StudyConfig | None:
        """What the study was begun with; None where there is no study yet."""
        return StudyConfig.load(self.config) if self.config.exists() else None

    @property
    def spent_seconds(self) -> float:
        """Time that earlier runs of this search took."""
        with taken_apart(self._state):
            return float(number("spent_seconds", self._read_state().get("spent_seconds", 0.0), 0.0))

    def note_time(self, seconds: float) -> None:
        """Remember the time spent so far."""
        write_json_atomic(self._state, {**self._read_state(), "spent_seconds": round(seconds, 1)})

    def is_finished(self, request: SearchRequest) -> bool:
        """Whether a search with this budget or a larger one has run to its end here."""
        finished = self._read_state().get("finished")
        if not finished or not (self.skip.exists() and self.bench.exists()):
            return False
        with taken_apart(self._state):
            return _is_within(budget_of(request), finished)

    def note_finished(self, request: SearchRequest | None) -> None:
        """Remember that a search with this budget has run to its end; None: that one is under way."""
        finished = budget_of(request) if request else None
        write_json_atomic(self._state, {**self._read_state(), "finished": finished})

    def has_scored_skip_set(self) -> bool:
        """Whether skip.json holds a set that was measured on the test split."""
        return self.skip.exists() and not SkipConfig.load(self.skip).provenance.get("interrupted", False)

    def num_tested(self, prefix: str) -> int:
        """How many methods whose id begins with ``prefix`` were measured on the test split, ever."""
        rows = read_jsonl(self.test)
        with taken_apart(self.test):
            return len({row["method"] for row in rows if row["method"].startswith(f"{prefix}:")})

    def _read_state(self) -> dict[str, Any]:
        return read_object(self._state) if self._state.exists() else {}


def _changed(differences: Mapping[str, tuple[Any, Any]], names: Sequence[str]) -> str:
    """``another tokenizer, other end-of-sequence tokens (2 → 3, 7)``."""
    parts = {name: _OF_TOKENS[name] for name in names}
    if "eos_token_ids" in parts:
        old, new = (", ".join(map(str, ids)) or "none" for ids in differences["eos_token_ids"])
        parts["eos_token_ids"] += f" ({old} → {new})"
    return ", ".join(parts.values())


def _is_within(asked: Mapping[str, float | None], done: Mapping[str, float | None]) -> bool:
    """Whether no part of a budget is more than what was there before; None is no limit."""
    return all((limit or inf) <= (done.get(name) or inf) for name, limit in asked.items())


def budget_of(request: SearchRequest) -> dict[str, Any]:
    """What may grow from one run of a search to the next, as plain JSON values."""
    return {"trials": request.trials, "timeout_seconds": request.timeout_seconds}

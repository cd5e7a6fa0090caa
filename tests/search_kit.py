"""What tests of searches and benches share: prompts, requests, a listening reporter, a scripted engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from selfspec_tune.draft import Draft
from selfspec_tune.prompts import Prompt
from selfspec_tune.reporting import Candidate, Progress
from selfspec_tune.requests import DraftOptions, ModelOptions, PromptOptions, SearchRequest
from selfspec_tune.results import PairedRun
from tests.runs import paired_run

if TYPE_CHECKING:
    from selfspec_tune.measure.arms import Arm
    from selfspec_tune.measure.pairs import Block
    from selfspec_tune.measure.workload import WorkItem

_SUBJECTS = ("the harbour", "an old tree", "this letter", "the third bridge", "a short night", "her garden")


def prompt_rows(count: int) -> list[dict[str, str]]:
    """Distinct prompts over two tasks."""
    return [
        {
            "id": str(number),
            "task": ("code", "chat")[number % 2],
            "prompt": f"{number}: tell of {_SUBJECTS[number % len(_SUBJECTS)]} in {2 + number} words",
        }
        for number in range(count)
    ]


def prompt_file(path: Path, count: int = 16) -> str:
    """A JSON-lines file of `prompt_rows`; returns its name as a prompt source."""
    path.write_text("".join(json.dumps(row) + "\n" for row in prompt_rows(count)), "utf-8")
    return str(path)


SKIPPING_ALONE: dict[str, Any] = {"policy": "threshold", "ngram": False, "precision": "same"}


def search_request(out: Path, model: Path, source: str, **fields: Any) -> SearchRequest:
    """A small search of skip sets alone, in float32: 16 prompts, 16 new tokens, 3 trials, the whole vocabulary drafted.

    Any field of any part of a request replaces these.
    """
    prompts: dict[str, Any] = {"source": source, "num_prompts": 16, "max_new_tokens": 16, "template": "raw"}
    loading: dict[str, Any] = {"name": str(model), "dtype": "float32", "device": "cpu"}
    drafting: dict[str, Any] = {**SKIPPING_ALONE, "vocabulary": "full"}
    budget: dict[str, Any] = {"trials": 3}
    for name, value in fields.items():
        if name in PromptOptions.__dataclass_fields__:
            prompts[name] = value
        elif name in DraftOptions.__dataclass_fields__:
            drafting[name] = value
        elif name in ModelOptions.__dataclass_fields__:
            loading[name] = value
        else:
            budget[name] = value
    return SearchRequest(out, ModelOptions(**loading), PromptOptions(**prompts), DraftOptions(**drafting), **budget)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Propose candidates for a moment only, and do not wait for the disk."""
    from selfspec_tune.search import budget

    patch.setattr(budget, "proxy_seconds", lambda *_: 0.1)
    patch.setattr(os, "fsync", lambda descriptor: None)


def without_caches(patch: pytest.MonkeyPatch) -> None:
    """A machine whose caches hold not even a tiny model, and whose memory is measured in no time."""
    from selfspec_tune.measure import plain_limit, roofline

    patch.setattr(roofline, "LEAST_BYTES", 1 << 16)
    for module in (roofline, plain_limit):
        patch.setattr(module, "last_level_cache", lambda device: 1 << 10)


def read_rows(path: Path) -> list[Any]:
    """Records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Listener:
    """A reporter that remembers what it was told; ``on_trial`` is called at each measured trial."""

    stages: list[tuple[str, str]] = field(default_factory=list)
    trials: list[Candidate] = field(default_factory=list)
    bests: list[Candidate] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    on_trial: Callable[[Candidate], None] = lambda _: None

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append((name, detail))

    def progress(self, progress: Progress) -> None: ...

    def trial(self, candidate: Candidate) -> None:
        self.trials.append(candidate)
        self.on_trial(candidate)

    def best(self, candidate: Candidate) -> None:
        self.bests.append(candidate)

    def notice(self, message: str) -> None:
        self.notices.append(message)

    @property
    def stage_names(self) -> list[str]:
        return [name for name, _ in self.stages]


def make_item(number: int, *, prompt_tokens: int = 5, max_new_tokens: int = 12) -> WorkItem:
    """A work item that no model need ever see."""
    from selfspec_tune.engine import Limits
    from selfspec_tune.measure.workload import WorkItem

    prompt = Prompt(f"set/{number}", "code", f"prompt {number}")
    tokens = tuple(3 + (number + offset) % 50 for offset in range(prompt_tokens))
    return WorkItem(prompt.id, prompt, tokens, Limits(max_new_tokens))


# (seconds of the baseline, speedup, lossless verdict) of one pair
Script = Callable[[Draft, "WorkItem"], tuple[float, float, str]]


def steady(speedup: float) -> Script:
    """Every pair at the same speedup."""
    return lambda draft, item: (1.0, speedup, "identical")


def by_number_skipped(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
    """A script: the more is skipped, the faster."""
    return 1.0, 1.0 + 0.1 * draft.skip_set.num_skipped, "identical"


@dataclass
class ScriptedEngine:
    """Stands in for ``measure_block``: times come from a script, nothing is decoded.

    The A-A run always takes as long as the baseline; ``model.generate`` takes
    ``generate_ratio`` times as long. A draft's rounds accept ``rounds`` of two tokens each.
    """

    script: Script
    generate_ratio: float = 2.0
    rounds: tuple[int, ...] = (2, 1)
    measured: list[tuple[str, str]] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    before_block: Callable[[int], None] = lambda _: None

    def __call__(
        self, workload: Any, baseline: Arm, candidates: Sequence[Arm], block: Block, check: Any
    ) -> list[PairedRun]:
        self.before_block(len(self.measured))
        return [self._pair(arm, block) for arm in candidates]

    def _pair(self, arm: Arm, block: Block) -> PairedRun:
        seconds, speedup, lossless = 1.0, 1.0, "identical"
        rounds: tuple[int, ...] = ()
        if arm.draft is not None:
            seconds, speedup, lossless = self.script(arm.draft, block.item)
            self.drafts.append(arm.draft)
            rounds = self.rounds
        elif arm.name == "hf-generate":
            speedup = 1 / self.generate_ratio
        self.measured.append((arm.id, block.item.id))
        return paired_run(
            block.item.id,
            method=arm.id,
            prompt_hash=block.item.prompt.hash,
            task=block.item.prompt.task,
            round=block.round,
            baseline=(11, 0.0, seconds),
            candidate=(11, 0.0, seconds / speedup),
            accepted=rounds,
            drafted=tuple(2 for _ in rounds),
            lossless=lossless,
        )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
        """Measure by script wherever the package measures."""
        from selfspec_tune.measure import contest
        from selfspec_tune.search.stages import scoring

        monkeypatch.setattr(contest, "measure_block", self)
        monkeypatch.setattr(scoring, "measure_block", self)
        return self

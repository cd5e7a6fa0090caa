"""``scripts/stopping.py``: whether stops that are learned from a log would gain."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from selfspec_tune.draft import Certainty, Round, Source
from selfspec_tune.draft.rounds import PLAIN_ROUND, num_tokens
from selfspec_tune.errors import UsageError
from tests import scripts_kit
from tests.runs import paired_run

stopping = scripts_kit.load_script("stopping.py")
SURE, UNSURE = Certainty(0.99, 5.0, 0.05), Certainty(0.4, 0.1, 1.5)


def test_positions_are_what_a_round_reached_and_a_bonus_token_is_as_the_next() -> None:
    rounds = [
        Round(3, 1, Source.MODEL, 3, 0, (SURE, UNSURE, SURE)),  # the third was never reached
        Round(2, 2, Source.MODEL, 2, 0, (SURE, SURE)),
        Round(1, 0, Source.MODEL, 1, 0, (UNSURE,)),
        PLAIN_ROUND,
    ]
    found = stopping.positions_of(rounds)
    assert len(found) == num_tokens(rounds)
    expected = [(SURE, 0, True), (UNSURE, 1, False), (SURE, 0, True), (SURE, 1, True), *[(UNSURE, 0, False)] * 3]
    assert [tuple(position) for position in found] == expected
    assert stopping.positions_of([PLAIN_ROUND]) == ()


def _answers(number: int, *, tells: bool) -> list[Any]:
    """Drafts of which three in four are always right, the others seldom; the margin tells which, or nothing does."""
    random, answers = Random(0), []
    for prompt in range(number):
        positions = []
        for _ in range(60):
            is_easy = random.random() < 0.75
            margin = 4.0 if is_easy and tells else 1.0
            is_right = is_easy or random.random() < 0.2
            positions.append(stopping.Position(Certainty(0.9, margin, 0.3), 0, is_right))
        answers.append(stopping.Answer(str(prompt), tuple(positions)))
    return answers


def test_what_tells_right_from_wrong_is_learned_and_what_does_not_gains_nothing() -> None:
    found = stopping.judge(_answers(6, tells=True))
    assert min(gain.low for gain in found.gains.values()) > 1.05
    assert max(found.losses["margin"], found.losses["all"]) < found.losses["confidence"] - 0.1
    assert found.speedups["confidence"] < found.speedups["fit"] < found.speedups["oracle"]
    assert found.weights[2] > 1.0
    found = stopping.judge(_answers(6, tells=False))
    assert [gain.value for gain in found.gains.values()] == pytest.approx([1.0, 1.0], abs=0.03)
    assert "- By lead 1.0" in "\n".join(stopping.lines(found))


def test_a_fit_is_calibrated() -> None:
    random = np.random.default_rng(0)
    inputs = np.stack([np.ones(4000), random.normal(size=4000)], -1)
    outcomes = (random.random(4000) < stopping.predict(inputs, np.array([1.0, 2.0]))).astype(float)
    weights = stopping.fit(inputs, outcomes)
    assert weights == pytest.approx([1.0, 2.0], abs=0.15)
    assert float(stopping.predict(inputs, weights).mean()) == pytest.approx(float(outcomes.mean()), abs=0.005)


def test_logs_are_read_and_lookups_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = (Round(2, 1, Source.MODEL, 2, 0, (SURE, UNSURE)), Round(2, 2, Source.MODEL, 2, 0, (SURE, SURE))) * 5
    found = (*rounds, Round(2, 2, "ngram", 0, 0, match_length=3))
    rows: list[dict[str, object]] = [{"schema": "selfspec-tune/bench-log"}]
    for number in range(5):
        run = paired_run(f"set/{number}")
        drafted = found if number == 4 else rounds
        run = run.model_copy(update={"candidate": run.candidate.model_copy(update={"rounds": drafted})})
        rows.append(run.to_dict())
    log = tmp_path / "bench.runs.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stopping.main([str(log)])
    assert capsys.readouterr().out.startswith("4 prompts, 100 positions, 20.0% of them wrong:")
    log.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(UsageError, match="2 prompts have drafts of the model's alone"):
        stopping.read_answers([log])

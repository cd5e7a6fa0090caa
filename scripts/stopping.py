#!/usr/bin/env python3
"""Whether drafts stop better by something else than their confidence: by a token's lead, or by what a log teaches.

.venv/bin/python scripts/stopping.py bench.runs.jsonl

The log is of drafts of a fixed length without lookup (``bench --policy fixed --max-draft-tokens 8 --no-ngram``): they
say of almost every position how sure the draft is there, and whether it is right. On half of the prompts at a time
P(accepted | confidence, margin, entropy, position) is fitted; on the others the cost-aware policy is replayed with the
confidence, with the lead (the logistic of the margin) in its place, and with that probability.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfspec_tune.draft import Certainty, DraftPolicy, PolicyKind, Round, Source
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.engine.teacher_forcing import Trace
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, read_jsonl
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.report import text
from selfspec_tune.results import ArmRun
from selfspec_tune.search.stages.replay import acceptance_prior, replay

LONGEST = 16
FOLDS = 2
# In plain steps, as the joint study's int4 draft and the engine's study have them on a CPU with AVX-512.
DRAFT, OVERHEAD = 0.27, 0.05
VERIFIED, VERIFY = (1, 4, 8, 16), (1.0, 1.06, 1.26, 1.30)
_RIDGE, _STEPS = 1e-3, 50
_COLUMNS = {"confidence": [0, 1], "margin": [0, 2], "all": [0, 1, 2, 3, 4]}  # of `features`
_LEAST = 1e-4  # of a probability and an entropy: what a log's digits tell from 0 and 1
Floats = NDArray[np.float64]


class Position(NamedTuple):
    """A position of an answer: how sure the draft was there, at which place of a draft, and whether it was right."""

    certainty: Certainty
    place: int
    is_right: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """All positions of an answer but the first token's, which the prefill gives."""

    prompt: str
    positions: tuple[Position, ...]

    @property
    def matches(self) -> tuple[bool, ...]:
        return tuple(position.is_right for position in self.positions)


def positions_of(rounds: Sequence[Round]) -> tuple[Position, ...]:
    """Every position that a round reached; that of a bonus token, where nothing was drafted, as the one after it."""
    found: list[Position | None] = []
    for one in rounds:
        reached = min(one.num_accepted + 1, one.num_drafted)
        certain = one.certainties if one.source == Source.MODEL else ()
        for place in range(one.num_tokens):
            known = place < min(reached, len(certain))
            found.append(Position(certain[place], place, place < one.num_accepted) if known else None)
    filled: list[Position] = []
    last: Position | None = next((position for position in reversed(found) if position), None)
    for position in reversed(found):
        last = position or last
        if last is not None:
            filled.append(last)
    return tuple(reversed(filled))


def read_answers(files: Iterable[Path]) -> list[Answer]:
    """The answers in logs and bench files whose drafts were the model's alone, a prompt once."""
    answers: dict[str, Answer] = {}
    for file in files:
        rows: list[Any] = read_jsonl(file) if file.suffix == ".jsonl" else read_json(file)["runs"]
        for row in rows:
            if "candidate" not in row:
                continue
            rounds = ArmRun.model_validate(row["candidate"]).rounds
            positions = positions_of(rounds)
            is_whole = all(one.source == Source.MODEL and one.certainties for one in rounds if one.num_drafted)
            if positions and is_whole:
                answers.setdefault(row["prompt_id"], Answer(row["prompt_id"], positions))
    if len(answers) < 2 * FOLDS:
        raise UsageError(
            f"{len(answers)} prompts have drafts of the model's alone that say how sure they are; expected "
            f"{2 * FOLDS} or more. Give logs of `bench --policy fixed --no-ngram`."
        )
    return list(answers.values())


def features(certainties: Sequence[Certainty], places: Sequence[int]) -> Floats:
    """[positions, 5]: one, the confidence's logit, the margin, the logarithms of entropy and place."""
    confidence, margin, entropy = np.array(certainties).T
    confidence = confidence.clip(_LEAST, 1 - _LEAST)
    ones = np.ones_like(confidence)
    logit, place = np.log(confidence / (1 - confidence)), np.log1p(np.array(places, dtype=float))
    return np.stack([ones, logit, margin, np.log(entropy.clip(_LEAST)), place], -1)


def fit(inputs: Floats, outcomes: Floats) -> Floats:
    """Weights of a logistic regression with a little shrinkage, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    shrinkage = _RIDGE * len(inputs) * np.eye(inputs.shape[1])
    for _ in range(_STEPS):
        chances = predict(inputs, weights)
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + shrinkage
        weights -= np.linalg.solve(curvature, inputs.T @ (chances - outcomes) + shrinkage @ weights)
    return weights


def predict(inputs: Floats, weights: Floats) -> Floats:
    """P(accepted) of each position."""
    chances: Floats = 1 / (1 + np.exp(-(inputs @ weights).clip(-30, 30)))
    return chances


Sureness = Callable[[Answer, int], Iterable[float]]  # of every position of an answer, were it at this place of a draft


def by_confidence(answer: Answer, place: int) -> Iterable[float]:
    return (position.certainty.confidence for position in answer.positions)


def by_lead(answer: Answer, place: int) -> Iterable[float]:
    return (position.certainty.lead for position in answer.positions)


def by_oracle(answer: Answer, place: int) -> Iterable[float]:
    """Of a draft that knows where it errs: the bound of every way to stop."""
    return map(float, answer.matches)


def by_fit(weights: Floats) -> Sureness:
    def predicted(answer: Answer, place: int) -> Iterable[float]:
        certainties = [position.certainty for position in answer.positions]
        return map(float, predict(features(certainties, [place] * len(certainties)), weights))

    return predicted


def trace_of(answers: Sequence[Answer], sureness: Sureness) -> Trace:
    """What replaying needs, with ``sureness`` for whatever a policy goes by."""
    depths = []
    for place in range(LONGEST):
        values = tuple(tuple(sureness(answer, place)) for answer in answers)
        depths.append(Trace(tuple(answer.matches for answer in answers), values, values, 0.0))
    return replace(depths[0], later=tuple(depths[1:]))


def step_costs() -> StepCosts:
    """Of a draft as the joint study's."""
    verify = [1.0, *(float(np.interp(k, VERIFIED, VERIFY)) + OVERHEAD for k in range(2, LONGEST + 2))]
    return StepCosts(1.0, DRAFT, tuple(verify))


def seconds_of(trace: Trace, learnt: Trace) -> float:
    """Decode time of held-out answers under a policy whose prior is of the traces that it learnt from."""
    policy = DraftPolicy(PolicyKind.COST_AWARE, LONGEST, prior=acceptance_prior(learnt))
    return step_costs().seconds(replay(trace, policy, step_costs()))


def log_loss(chances: Floats, outcomes: Floats) -> float:
    """Mean negative log-likelihood in nats."""
    chances = chances.clip(_LEAST, 1 - _LEAST)
    return float(-np.mean(outcomes * np.log(chances) + (1 - outcomes) * np.log(1 - chances)))


@dataclass(frozen=True, slots=True)
class Found:
    """Of held-out answers: decode speedups by way to stop, log losses of fits, and what is gained over confidences."""

    speedups: dict[str, float]
    losses: dict[str, float]
    gains: dict[str, Interval]
    weights: Floats


def judge(answers: Sequence[Answer]) -> Found:
    """Fit and replay on disjoint prompts, every prompt held out once."""
    seconds: dict[str, list[float]] = defaultdict(list)
    chances: dict[str, list[Floats]] = defaultdict(list)
    outcomes, prompts = [], []
    weights = np.zeros(5)
    for fold in range(FOLDS):
        held = [answer for number, answer in enumerate(answers) if number % FOLDS == fold]
        known = [answer for number, answer in enumerate(answers) if number % FOLDS != fold]
        weights = fit(*_inputs(known))
        inputs, right = _inputs(held)
        outcomes.append(right)
        for name, columns in _COLUMNS.items():
            learnt = fit(_inputs(known)[0][:, columns], _inputs(known)[1])
            chances[name].append(predict(inputs[:, columns], learnt))
        prompts += [answer.prompt for answer in held]
        ways = {"confidence": by_confidence, "lead": by_lead, "fit": by_fit(weights), "oracle": by_oracle}
        for name, sureness in ways.items():
            learnt_from = trace_of(known, sureness)
            seconds[name] += [seconds_of(trace_of([answer], sureness), learnt_from) for answer in held]
    tokens = sum(len(answer.positions) for answer in answers)
    return Found(
        {name: tokens / sum(values) for name, values in seconds.items()},
        {name: log_loss(np.concatenate(values), np.concatenate(outcomes)) for name, values in chances.items()},
        {name: cluster_bootstrap(seconds["confidence"], seconds[name], prompts) for name in ("lead", "fit")},
        weights,
    )


def _inputs(answers: Sequence[Answer]) -> tuple[Floats, Floats]:
    positions = [position for answer in answers for position in answer.positions]
    inputs = features([position.certainty for position in positions], [position.place for position in positions])
    return inputs, np.array([position.is_right for position in positions], dtype=float)


def lines(found: Found) -> list[str]:
    """The figures for people."""
    speedups = ", ".join(f"{name} {value:.3f}×" for name, value in found.speedups.items())
    losses = ", ".join(f"{name} {value:.4f}" for name, value in found.losses.items())
    return [
        f"- Decode speedup on held-out prompts, replayed: {speedups}.",
        f"- Log loss of P(accepted), nats: {losses}.",
        *(f"- By {name} {text.speedup(gain)} as fast as by confidence." for name, gain in found.gains.items()),
        f"- Weights of 1, logit of confidence, margin, ln entropy, ln place: {np.round(found.weights, 3).tolist()}.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="LOG", help="logs of a bench, or bench files")
    answers = read_answers(parser.parse_args(arguments).files)
    positions = sum(len(answer.positions) for answer in answers)
    wrong = sum(not match for answer in answers for match in answer.matches)
    print(f"{len(answers)} prompts, {positions} positions, {wrong / positions:.1%} of them wrong:")
    print("\n".join(lines(judge(answers))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

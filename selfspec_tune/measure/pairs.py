"""Blocks of interleaved runs: the unit of every measurement.

In a block one item is decoded by the baseline and by every candidate, right after each
other; the order turns with (round, item), so that none is always first. On a busy
machine only ratios within a block mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from selfspec_tune.engine import RawGeneration
from selfspec_tune.measure.arms import Arm
from selfspec_tune.measure.degeneration import judge, of_both
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.results import ArmRun, PairedRun

T = TypeVar("T")
_NO_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Block:
    """What one block measures: an item in a round; ``index`` counts blocks, ``position`` items within the round."""

    item: WorkItem
    round: int
    index: int
    position: int


def blocks(items: Sequence[WorkItem], rounds: int = 1) -> Iterator[Block]:
    """Every item once a round."""
    for round_ in range(rounds):
        for position, item in enumerate(items):
            yield Block(item, round_, round_ * len(items) + position, position)


def measure_block(
    workload: Workload, baseline: Arm, candidates: Sequence[Arm], block: Block, check: LosslessCheck
) -> list[PairedRun]:
    """Decode one item by every arm; one record per candidate, in the candidates' order."""
    arms = ordered([baseline, *candidates], block)
    generations: dict[str, RawGeneration] = {}
    for arm in arms:
        workload.sampler.restart(workload.options.seed * 100_003 + block.index)
        generations[arm.id] = arm.decode(block.item)
    order = {arm.id: place for place, arm in enumerate(arms)}
    plain = generations[baseline.id]
    text = workload.loaded.tokenizer.decode(plain.tokens, skip_special_tokens=True)
    return [
        _pair(workload, block, candidate, plain, generations[candidate.id], order, baseline.id, check).model_copy(
            update={"text": text}
        )
        for candidate in candidates
    ]


def ordered(arms: Sequence[Arm], block: Block) -> list[Arm]:
    """The arms in the order of ``block``: it turns with the item, and by one more each round."""
    number = len(arms)
    mirrored = block.position // number % 2
    return turned(arms, mirrored * number + (block.position + block.round) % number)


def turned(arms: Sequence[T], index: int) -> list[T]:
    """The arms, or contests, in the order of block ``index``: rotated by it, mirrored every other turn."""
    shift = index % len(arms)
    order = [*arms[shift:], *arms[:shift]]
    return order[::-1] if (index // len(arms)) % 2 else order


def _pair(
    workload: Workload,
    block: Block,
    candidate: Arm,
    plain: RawGeneration,
    generation: RawGeneration,
    order: dict[str, int],
    baseline_id: str,
    check: LosslessCheck,
) -> PairedRun:
    model = (candidate.model or workload.loaded).model if candidate.by_transformers else None
    answers = (plain, generation)
    verdict = check(block.item, plain.tokens, generation.tokens, model, generation.rounds)
    degenerate = of_both(*(judged(workload, a.tokens, ended=a.stop_reason == "eos") for a in answers))
    return PairedRun(
        method=candidate.id,
        prompt_id=block.item.id,
        prompt_hash=block.item.prompt.hash,
        task=block.item.prompt.task,
        round=block.round,
        order=order[candidate.id],
        baseline_order=order[baseline_id],
        prompt_tokens=len(block.item.tokens),
        baseline=arm_run(plain),
        candidate=arm_run(generation),
        lossless=verdict.status,
        first_difference=verdict.first_difference,
        logit_gap=verdict.logit_gap,
        degenerate=degenerate,
        too_short=degenerate is None,
    )


def judged(workload: Workload, answer: Sequence[int], *, ended: bool) -> bool | None:
    """Whether an answer degenerates, by the texts of its tokens; None: it is too short to tell."""
    texts = {token: str(workload.loaded.tokenizer.decode([token])) for token in set(answer)}
    # A token may be a part of a character, or nothing that can be shown: then its id tells it from others.
    shown = {token: text for token, text in texts.items() if text and _NO_CHARACTER not in text}
    return judge([shown.get(token, token) for token in answer], ended=ended)


def arm_run(generation: RawGeneration) -> ArmRun:
    """The record of one generation, without its tokens."""
    return ArmRun(
        num_tokens=len(generation.tokens),
        prefill_seconds=generation.prefill_seconds,
        decode_seconds=generation.decode_seconds,
        draft_seconds=generation.draft_seconds,
        verify_seconds=generation.verify_seconds,
        rounds=tuple(generation.rounds),
        stop_reason=generation.stop_reason,
        first_tokens=generation.first_tokens,
    )

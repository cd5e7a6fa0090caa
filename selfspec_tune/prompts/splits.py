"""Seeded, task-stratified draws, and the three disjoint splits of a search.

Everything rests on one order of the prompts in which every stretch holds the tasks
in nearly the proportion of the whole. A draw is its beginning; the splits are
consecutive stretches. The order depends on the set of texts and the seed alone, not
on the order in which a file lists them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.prompt import Prompt, unique

FEWEST_PROMPTS = 4  # that can be split into three


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint sets of prompts.

    The search reads ``calibration``, finalists compete on ``selection``, and the
    winner alone is measured, once, on ``test``.
    """

    calibration: tuple[Prompt, ...]
    selection: tuple[Prompt, ...]
    test: tuple[Prompt, ...]

    def hashes(self) -> dict[str, list[str]]:
        """Prompt hashes by split, as skip.json records them."""
        return {
            "calibration": [prompt.hash for prompt in self.calibration],
            "selection": [prompt.hash for prompt in self.selection],
            "test": [prompt.hash for prompt in self.test],
        }


def stratified_order(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Distinct prompts in a seeded order that spreads every task evenly.

    Prompt ``r`` of a shuffled task of ``n`` gets the position ``(r + u) / n``, with one
    random ``u`` in [0, 1) for each task; the order is by position. So any stretch holds
    each task in its share of the whole, give or take about one prompt a task.
    """
    by_task: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in sorted(unique(prompts), key=lambda prompt: prompt.hash):
        by_task[prompt.task].append(prompt)
    positioned: list[tuple[float, str, Prompt]] = []
    for task, members in by_task.items():
        generator = random.Random(f"{seed}/{task}")
        generator.shuffle(members)
        offset = generator.random()
        for rank, prompt in enumerate(members):
            positioned.append(((rank + offset) / len(members), prompt.hash, prompt))
    positioned.sort(key=lambda entry: entry[:2])
    return [prompt for _, _, prompt in positioned]


def draw_prompts(prompts: Iterable[Prompt], num_prompts: int, *, seed: int) -> tuple[Prompt, ...]:
    """``num_prompts`` distinct prompts, tasks in proportion; a larger draw contains a smaller one.

    Raises `PromptError` if fewer than ``num_prompts`` distinct prompts are there, or none is asked for.
    """
    if num_prompts < 1:
        raise PromptError(f"num_prompts is {num_prompts}; expected at least 1.")
    order = stratified_order(prompts, seed)
    if len(order) < num_prompts:
        raise PromptError(
            f"{num_prompts} prompts were asked for, but the source has {len(order)} distinct ones; "
            f"ask for at most {len(order)} or give a larger source."
        )
    return tuple(order[:num_prompts])


def split_prompts(
    prompts: Iterable[Prompt],
    *,
    seed: int,
    calibration: int,
    selection: int,
    test: int,
    read: Collection[str] = (),
) -> Splits:
    """Three disjoint splits of the given sizes, tasks in proportion in each.

    Prompts whose hashes are in ``read``, those that an earlier search has seen, come first, and what
    of them is left for ``test`` is left out. Repeated texts count once. Raises `PromptError` if a
    size is negative or the prompts do not suffice.
    """
    sizes = {"calibration": calibration, "selection": selection, "test": test}
    for name, size in sizes.items():
        if size < 0:
            raise PromptError(f"The {name} split's size is {size}; expected 0 or more.")
    order = sorted(stratified_order(prompts, seed), key=lambda prompt: prompt.hash not in read)
    needed = sum(sizes.values())
    if len(order) < needed:
        wanted = " + ".join(f"{size} {name}" for name, size in sizes.items())
        raise PromptError(
            f"The splits need {needed} distinct prompts ({wanted}), but there are {len(order)}; "
            "give more prompts or smaller splits."
        )
    second, third = calibration, calibration + selection
    unread = tuple(prompt for prompt in order[third:needed] if prompt.hash not in read)
    if test and not unread:
        raise PromptError(
            f"Of {needed} prompts, those left to test on were all read by a search that this one starts from. "
            "Raise `num_prompts`, or give other `prompts`."
        )
    return Splits(tuple(order[:second]), tuple(order[second:third]), unread)


def split_each_task(
    prompts: Iterable[Prompt], tasks: Collection[str], *, seed: int, read: Collection[str] = ()
) -> Splits:
    """Each of ``tasks`` split on its own into splits of the default sizes, then joined, tasks in proportion throughout.

    So a prompt is in the same split whether its task is split alone or beside others. ``read`` as
    in `split_prompts`. Raises `PromptError` where a task has fewer than 4 prompts.
    """
    by_task: dict[str, list[Prompt]] = {task: [] for task in sorted(tasks)}
    for prompt in unique(prompts):
        by_task[prompt.task].append(prompt)
    if any(len(members) < FEWEST_PROMPTS for members in by_task.values()):
        numbers = ", ".join(f"{task} {len(members)}" for task, members in by_task.items())
        raise PromptError(
            f"Each task needs at least {FEWEST_PROMPTS} prompts (to calibrate on, to select on and to test on); drawn "
            f"were {numbers}. Raise `num_prompts`, give a larger set with `prompts`, or name the tasks to keep with "
            "`tasks`."
        )
    found = []
    for members in by_task.values():
        calibration, selection, test = default_split_sizes(len(members))
        sizes = {"calibration": calibration, "selection": selection, "test": test}
        found.append(split_prompts(members, seed=seed, read=read, **sizes))
    return Splits(
        tuple(stratified_order((prompt for splits in found for prompt in splits.calibration), seed)),
        tuple(stratified_order((prompt for splits in found for prompt in splits.selection), seed)),
        tuple(stratified_order((prompt for splits in found for prompt in splits.test), seed)),
    )


def default_split_sizes(num_prompts: int) -> tuple[int, int, int]:
    """Sizes (calibration, selection, test): a quarter, a quarter, and the rest."""
    quarter = num_prompts // 4
    return quarter, quarter, num_prompts - 2 * quarter

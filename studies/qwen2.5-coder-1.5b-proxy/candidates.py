"""Drafts of every quality for a study of the proxy: where they come from, and an even choice of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar

from selfspec_tune.draft import Draft, DraftPolicy, Precision
from selfspec_tune.engine.teacher_forcing import DraftScorer, Trace, Window
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_jsonl
from selfspec_tune.results import StudyConfig
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.candidates import Moves, greedy_path, local_moves, prefixes
from selfspec_tune.search.stages.importance import Importance, by_worth
from selfspec_tune.search.stages.proxy import Prediction, Proxy
from selfspec_tune.search.stages.ranking import read_ranking
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import read_prediction

T = TypeVar("T")
_MOST_SKIPPED = 0.9  # of the skippable sub-layers, in a random draft


class Remembering:
    """A scorer that scores each draft once, however many proxies ask."""

    def __init__(self, scorer: DraftScorer) -> None:
        self._scorer = scorer
        self._traces: dict[Draft, Trace] = {}
        self.windows: Sequence[Window] = scorer.windows
        self.approximation = scorer.approximation

    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows; see `DraftScorer`."""
        if draft not in self._traces:
            self._traces[draft] = self._scorer.trace(draft)
        return self._traces[draft]


def random_drafts(space: SearchSpace, number: int, seed: int) -> Iterator[Draft]:
    """Random skip sets of evenly spread sizes; in a joint space every other draft at random precisions too."""
    generator = Random(seed)
    for turn in range(number):
        size = round((turn + 0.5) / number * _MOST_SKIPPED * len(space.skippable))
        draft = space.skipping(frozenset(generator.sample(list(space.skippable), size)))
        yield _at_random_precisions(draft, space, generator) if space.is_joint and turn % 2 else draft


def _at_random_precisions(draft: Draft, space: SearchSpace, generator: Random) -> Draft:
    share = generator.random()
    sublayers: list[Precision | None] = [
        generator.choice(choices) if own is not None and generator.random() < share else own
        for own, choices in zip(draft.sublayers, space.sublayers, strict=True)
    ]
    return space.fitted(draft.with_sublayers(sublayers).with_head(generator.choice(space.heads)))


def drafts_of_study(folder: Path, fingerprint: str, space: SearchSpace, number: int) -> list[Draft]:
    """Up to ``number`` drafts that a search in ``folder`` predicted or ranked, from its best to its worst.

    Those only that ``space`` has, with its lookup and vocabulary. Raises `UsageError` where the folder
    holds no search, or one of other weights than those of ``fingerprint``.
    """
    study = StudyFolder(folder)
    if StudyConfig.load(study.config).model_fingerprint != fingerprint:
        raise UsageError(f"--study {folder}: a search of another model; give one of the model that is studied.")
    found = [read_prediction(record, space.num_layers) for record in read_jsonl(study.proxy)]
    if study.ranking.exists():
        found += read_ranking(study.ranking, space.num_layers).candidates
    found.sort(key=lambda prediction: -prediction.speedup)
    drafts = dict.fromkeys(_within(prediction.draft, space) for prediction in found)
    return evenly([draft for draft in drafts if draft is not None], number)


def _within(draft: Draft, space: SearchSpace) -> Draft | None:
    """The draft with the space's lookup and vocabulary; None where the space lacks one of its precisions."""
    allowed = zip(draft.sublayers, space.sublayers, strict=True)
    if any(own is not None and own not in choices for own, choices in allowed):
        return None
    if draft.precision.head not in space.heads:
        return None
    ours = space.base.with_sublayers(draft.sublayers).with_head(draft.precision.head)
    return ours if space.admits(ours) else None


def evenly(items: Sequence[T], number: int) -> list[T]:
    """Up to ``number`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(number - 1, 1))] for i in range(number)]


def pool(
    proxy: Proxy, space: SearchSpace, importance: Importance, number: int, seed: int, studied: Sequence[Draft] = ()
) -> list[Prediction]:
    """About ``number`` predictions: the base, prefixes, random drafts, a greedy path, a study's, local moves."""
    share, order = max(1, number // 5), by_worth(importance, space, proxy.costs)
    found = [proxy(space.base, "base")]
    found += [proxy(draft, "prefix") for draft in prefixes(order, space, share)]
    found += [proxy(draft, "random") for draft in random_drafts(space, share, seed)]
    found += islice(greedy_path(proxy, order, space.base), share)
    found += [proxy(draft, "study") for draft in evenly(studied, share)]
    left = max(share, number - len(found))
    found += islice(local_moves(proxy, Moves(space, importance, seed)), left)
    return list({prediction.draft: prediction for prediction in found}.values())


def spread(predictions: Sequence[Prediction], number: int, lowest: float) -> list[Prediction]:
    """``number`` predictions, evenly over their speedups from ``lowest``, or the least there is, to the best.

    The range is cut into ``number`` strata of equal width. The best and the worst are taken, and one of
    each stratum between; then fuller strata give more until there are enough. A stratum gives what was not
    taken under another policy, if it can, and of the origin that was taken least so far. All are returned
    where there are no more than ``number``, the best first.
    """
    ordered = sorted(predictions, key=lambda prediction: (-prediction.speedup, prediction.draft.describe()))
    usable = [prediction for prediction in ordered if prediction.speedup >= lowest]
    if len(usable) <= number:
        return usable
    best, worst = usable[0], usable[-1]
    width = (best.speedup - worst.speedup) / number or 1.0
    strata: list[list[Prediction]] = [[] for _ in range(number)]
    for prediction in usable[1:-1]:
        strata[min(int((best.speedup - prediction.speedup) / width), number - 1)].append(prediction)
    taken = [best, worst]
    origins, times = Counter(one.origin for one in taken), Counter(_computed(one) for one in taken)
    giving = strata[1:-1]
    while len(taken) < number:
        for stratum in evenly([stratum for stratum in giving if stratum], number - len(taken)):
            chosen = min(stratum, key=lambda one: (times[_computed(one)], origins[one.origin]))
            stratum.remove(chosen)
            taken.append(chosen)
            origins[chosen.origin] += 1
            times[_computed(chosen)] += 1
        giving = strata
    return sorted(taken, key=lambda prediction: -prediction.speedup)


def _computed(prediction: Prediction) -> Draft:
    """The draft without its policy: what its passes compute."""
    return replace(prediction.draft, policy=DraftPolicy())

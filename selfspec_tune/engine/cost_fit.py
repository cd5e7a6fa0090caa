"""Least squares from the times of whole draft steps to what their parts cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import nnls

from selfspec_tune.costs import ContextCosts, CostModel
from selfspec_tune.draft import Draft, Precision

# A part of a draft step: ("head", precision, token ids), ("attention", precision, context), ("mlp", precision, 0).
_Part = tuple[str, Precision, int]


@dataclass(frozen=True, slots=True)
class DraftTiming:
    """Steps of ``draft`` after ``length`` tokens: seconds, one value a round."""

    length: int
    draft: Draft
    seconds: Sequence[float]


def fit_costs(
    timings: Sequence[DraftTiming],
    verify: Mapping[int, tuple[float, ...]],
    *,
    home: int,
    vocabulary: int,
    full_vocabulary: int,
    num_layers: int,
) -> CostModel:
    """The cost model that explains ``timings`` best; no part costs less than nothing.

    Errors count relative to the step's time, as timing noise does. ``verify`` holds the
    times of passes over 1, 2, … tokens by context length; attentions cost something else
    at each length, all else is shared.
    """
    rows = [_parts(timing, full_vocabulary) for timing in timings]
    parts = sorted({part for row in rows for part in row})
    seconds = np.array([median(timing.seconds) for timing in timings])
    matrix = np.array([[row[part] for part in parts] for row in rows]) / seconds[:, None]
    solution, _ = nnls(matrix, np.ones(len(rows)))
    costs = dict(zip(parts, map(float, solution), strict=True))
    return CostModel(
        verify=verify[home],
        heads=_of(costs, "head", vocabulary),
        attention=_of(costs, "attention", home),
        mlp=_of(costs, "mlp", 0),
        num_layers=num_layers,
        contexts=tuple(
            ContextCosts(length, verify[length], costs["attention", Precision.SAME, length])
            for length in sorted(verify)
        ),
        length=home,
        vocabularies={
            size: value for (kind, precision, size), value in costs.items() if (kind, precision) == ("head", "same")
        },
        vocabulary=vocabulary,
        residual=float(np.sqrt(np.mean((matrix @ solution - 1.0) ** 2))),
    )


def _parts(timing: DraftTiming, full_vocabulary: int) -> Counter[_Part]:
    """How often each part occurs in a step."""
    draft = timing.draft
    parts: Counter[_Part] = Counter()
    parts["head", draft.precision.head, draft.vocabulary or full_vocabulary] = 1
    for index, skipped in enumerate(draft.skip_set.to_flags()):
        if not skipped:
            precision = draft.precision.of(index)
            parts["mlp" if index % 2 else "attention", precision, 0 if index % 2 else timing.length] += 1
    return parts


def _of(costs: Mapping[_Part, float], kind: str, place: int) -> dict[Precision, float]:
    return {precision: seconds for (name, precision, where), seconds in costs.items() if (name, where) == (kind, place)}

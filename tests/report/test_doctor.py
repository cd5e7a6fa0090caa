"""The table of what each part costs, in a diagnosis for people."""

from __future__ import annotations

import io

from rich.console import Console

from selfspec_tune.draft import Precision
from selfspec_tune.draft.class_costs import ClassCosts
from selfspec_tune.draft.costs import ContextCosts, CostModel
from selfspec_tune.report.doctor import costs_table

SAME, INT4 = Precision.SAME, Precision.INT4


def test_each_class_and_place_has_its_cost_under_its_precision() -> None:
    each = {INT4: 0.001, SAME: 0.002}
    costs = CostModel(
        (0.1, 0.2),
        each,
        each,
        each,
        num_layers=3,
        contexts=(ContextCosts(16, (0.1, 0.2), 0.002), ContextCosts(64, (0.1, 0.2), 0.004)),
        length=16,
        vocabularies={128: 0.002, 64: 0.007},
        vocabulary=128,
        others=(
            ClassCosts("attention in a window of 33", (2,), each, 16, 32, ((16, 0.002), (32, 0.003))),
            ClassCosts("experts", (3,), each, experts=4, each_expert={SAME: 0.005}),
        ),
    )
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(costs_table(costs))
    rows = [line.split("  ") for line in stream.getvalue().splitlines()]
    read = [tuple(cell.strip() for cell in row if cell.strip()) for row in rows]
    assert [row for row in read if len(row) == 3][1:] == [
        ("attention", "1.000 ms", "2.000 ms"),
        ("MLP", "1.000 ms", "2.000 ms"),
        ("attention in a window of 33", "1.000 ms", "2.000 ms"),
        ("experts", "1.000 ms", "2.000 ms"),
        ("head, 128 token ids", "1.000 ms", "2.000 ms"),
        ("head, 64 token ids", "–", "7.000 ms"),
        ("attention after 64 tokens", "–", "4.000 ms"),
        ("attention in a window of 33, over 32 tokens", "–", "3.000 ms"),
        ("one of 4 experts", "–", "5.000 ms"),
    ]

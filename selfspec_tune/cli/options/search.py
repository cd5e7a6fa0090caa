"""Options of search and compare alone."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.arguments import DEFAULT_TIMEOUT
from selfspec_tune.cli.options.option import Option, Panel
from selfspec_tune.cli.options.shared import SEARCHES
from selfspec_tune.requests import SearchRequest, StrategyName

OPTIONS = (
    Option(
        "out",
        Path,
        "The study's folder.",
        SEARCHES,
        SearchRequest,
        metavar="DIR",
        default="studies/<model>-<prompts>…",
    ),
    Option("dry_run", bool, "Print the plan; run nothing.", ("search",)),
    Option("trials", int, "Trials at most.", SEARCHES, SearchRequest, metavar="N", panel=Panel.BUDGET),
    Option(
        "timeout",
        str,
        "Time for the search; compare gives as much to each strategy, and then measures.",
        SEARCHES,
        SearchRequest,
        metavar="45m",
        panel=Panel.BUDGET,
        default=f"{DEFAULT_TIMEOUT} unless --trials is given",
    ),
    Option(
        "strategy",
        StrategyName,
        "How to search; all but staged are there to compare with. cmaes needs the extra 'search'.",
        ("search",),
        SearchRequest,
        panel=Panel.BUDGET,
    ),
    Option(
        "per_task",
        bool,
        "One search over all tasks of the prompts and one for each, in DIR/all and DIR/TASK; half of the time is "
        "shared equally, half by the number of prompts. Then, in further time, what each draft is worth on every "
        "task, and whether picking one by prompt would pay.",
        ("search",),
        panel=Panel.BUDGET,
    ),
    Option(
        "start_from",
        str,
        "Begin from a skip.json, a study's folder, a file of any dialect, or a text such as 'attn 2-9 · mlp 3,5'; "
        "rescaled where its model has another depth. Repeatable.",
        SEARCHES,
        SearchRequest,
        metavar="FILE|STUDY|TEXT",
        panel=Panel.BUDGET,
        is_repeated=True,
    ),
    Option(
        "strategies",
        str,
        f"Ways to search: {', '.join(StrategyName)}.",
        ("compare",),
        metavar="A,B,…",
        panel=Panel.BUDGET,
        value="staged,tpe,self-sd",
    ),
    Option(
        "early",
        str,
        "Measure too what staged had found after this time, such as 4.5m.",
        ("compare",),
        metavar="T",
        panel=Panel.BUDGET,
    ),
    Option(
        "plot",
        Path,
        "With --per-task: draw the speedups of all drafts on all tasks, .svg or .png.",
        SEARCHES,
        metavar="FILE",
        panel=Panel.FILES,
        differs={"compare": {"help": "Draw best so far against time, .svg or .png."}},
    ),
)

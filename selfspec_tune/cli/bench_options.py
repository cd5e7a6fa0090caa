"""Options of bench alone, and those it shares with search where its defaults are the study's."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from selfspec_tune.cli import options
from selfspec_tune.draft import PolicyKind
from selfspec_tune.prompts.render import Template
from selfspec_tune.requests import SWEEP_VALUES, BenchRequest, RuntimeName, SweepKind

_PANEL_DRAFT, _PANEL_RIVALS, _PANEL_SWEEP, _PANEL_FILES = "Draft", "Rivals", "Sweep", "Files"
_OF_SKIP_FILE = "the skip.json's"
_BENCH = BenchRequest()


def _of_study(option: Any, *, help: str | None = None, default: str | None = None) -> OptionInfo:
    """A search's option as bench has it: what is not given is the study's, else the search's default."""
    info = copy(next(part for part in get_args(option) if isinstance(part, OptionInfo)))
    info.show_default = default or f"the study's; without one {info.show_default}"
    info.help = help or info.help
    return info


ModelName = Annotated[
    str | None, _of_study(options.ModelName, default="the study's; needed with a skip set that names none")
]
Revision = Annotated[str | None, _of_study(options.Revision, default="the study's; without one the hub's")]
DtypeName = Annotated[options.Dtype | None, _of_study(options.DtypeName)]
PromptSource = Annotated[str | None, _of_study(options.PromptSource)]
NumPrompts = Annotated[
    int | None,
    _of_study(
        options.NumPrompts,
        help="Prompts to measure, of those that no search read.",
        default="the study's test split; without a study 64, or all where there are fewer",
    ),
]
Tasks = Annotated[list[str] | None, _of_study(options.Tasks, help="Prompts of this task only. Repeatable.")]
MaxNewTokens = Annotated[int | None, _of_study(options.MaxNewTokens)]
Temperature = Annotated[float | None, _of_study(options.Temperature)]
TopP = Annotated[float | None, _of_study(options.TopP)]
TopK = Annotated[int | None, _of_study(options.TopK)]
TemplateName = Annotated[Template | None, _of_study(options.TemplateName)]
Seed = Annotated[int | None, _of_study(options.Seed, help="Of prompts, sampling and random skipping.")]
# What changes every draft that is measured.
Policy = Annotated[PolicyKind | None, _of_study(options.PolicyName, help="When a draft ends.", default=_OF_SKIP_FILE)]
MaxDraftTokens = Annotated[int | None, _of_study(options.MaxDraftTokens, default=_OF_SKIP_FILE)]
ExitThreshold = Annotated[float | None, _of_study(options.ExitThreshold, default=_OF_SKIP_FILE)]
Ngram = Annotated[bool | None, _of_study(options.Ngram, default=_OF_SKIP_FILE)]
Precision = Annotated[str | None, _of_study(options.Precision, default=_OF_SKIP_FILE)]


def _usual(kind: SweepKind) -> str:
    return ",".join(f"{value:g}" for value in SWEEP_VALUES[kind])


RuntimeChoice = Annotated[
    RuntimeName | None,
    typer.Option(
        "--runtime",
        help="Measure an export, given by its folder, in another runtime: its target alone against its target with it. "
        "Prompts are then builtin, 64 of those that no search read, unless others are given.",
        show_default=False,
        rich_help_panel=_PANEL_RIVALS,
    ),
]
Sweep = Annotated[
    SweepKind | None,
    typer.Option(
        "--sweep",
        help="Measure how the speedup moves: with the prompts' length (other prompts of the source before them, "
        "nothing repeated), the sampling temperature, or the longest draft. All values are interleaved in one run.",
        show_default=False,
        rich_help_panel=_PANEL_SWEEP,
    ),
]
SweepValues = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,…",
        help="Values to measure.",
        show_default="; ".join(f"{kind} {_usual(kind)}" for kind in SweepKind) + "; as far as the model allows",
        rich_help_panel=_PANEL_SWEEP,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="F.png|F.svg",
        help="Draw the sweep; needs matplotlib, which the extra named plots brings.",
        show_default=False,
        rich_help_panel=_PANEL_SWEEP,
    ),
]
BenchFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="bench.json",
        help="Write the result with its raw runs. They go to bench.runs.jsonl beside it as they come, and the same "
        "command resumes from there; methods added later are measured beside a baseline of their own.",
        rich_help_panel=_PANEL_FILES,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Measure again what --out holds; the earlier runs are kept as bench.runs.jsonl.1, .2, …",
        rich_help_panel=_PANEL_FILES,
    ),
]
SkipFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="SKIP.json",
        help="skip.json, or any dialect's file with --model; with --runtime the folder of an export.",
        show_default="the newest study's",
    ),
]
SkipSets = Annotated[
    list[str] | None,
    typer.Option(
        "--skip-set",
        metavar="TEXT|FILE",
        help="A further skip set, such as 'attn 2-9 · mlp 3,5'. Repeatable.",
        show_default=False,
    ),
]
Rounds = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Times each prompt is measured.", show_default=str(_BENCH.rounds))
]
ReferencePrompts = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Prompts for model.generate, uniform and random skipping, and A-A.",
        show_default=str(_BENCH.reference_prompts),
    ),
]
NoReferences = Annotated[
    bool,
    typer.Option("--no-references", help="Leave uniform and random skipping out; with --rivals random only."),
]
Rivals = Annotated[
    bool,
    typer.Option(
        "--rivals",
        help=(
            "On every prompt also what a user would pick instead: model.generate, its prompt lookup and early exit, "
            "--draft-model, uniform skipping. A skip set from a file in Self-SD's form (keyed by the model, or a bare "
            "entry) or in SWIFT's (<model>_<task>) then drafts by that system's own policy."
        ),
        rich_help_panel=_PANEL_RIVALS,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="M",
        help="With --rivals: a smaller model that drafts in transformers' assisted decoding.",
        show_default=False,
        autocompletion=options.complete_model,
        rich_help_panel=_PANEL_RIVALS,
    ),
]
EarlyExit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="With --rivals: layers that draft in transformers' early exit.",
        show_default="a third of them",
        rich_help_panel=_PANEL_RIVALS,
    ),
]
Parts = Annotated[
    bool,
    typer.Option(
        "--parts",
        help=(
            "On every prompt also what the (first) draft is made of: its skip set alone, its low-precision copies "
            "alone, with the skip set and with the lookup, its lookup alone; and the whole draft under every other "
            "policy."
        ),
        rich_help_panel=_PANEL_DRAFT,
    ),
]
AllowCalibration = Annotated[
    bool,
    typer.Option("--allow-calibration", help="Use prompts that the search read; marks the result in sample."),
]
Csv = Annotated[Path | None, typer.Option(metavar="F", help="Write a row a method.", rich_help_panel=_PANEL_FILES)]
Parquet = Annotated[Path | None, typer.Option(metavar="F", help="Write a row a method.", rich_help_panel=_PANEL_FILES)]
SpecBench = Annotated[
    Path | None,
    typer.Option(metavar="F.jsonl", help="Write Spec-Bench answer rows.", rich_help_panel=_PANEL_FILES),
]

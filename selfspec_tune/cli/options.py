"""The options of search and bench, each declared once.

An option that was not given is None: the defaults live in `selfspec_tune.requests`, and a
bench takes from the study what was not said.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from selfspec_tune.arguments import DEFAULT_TIMEOUT
from selfspec_tune.prompts.render import Template
from selfspec_tune.requests import (
    DEFAULT_NUM_PROMPTS,
    DraftOptions,
    ModelOptions,
    Objective,
    PolicyChoice,
    PromptOptions,
    StrategyName,
)

_MODEL, _PROMPTS, _DRAFT = ModelOptions(), PromptOptions(), DraftOptions()
_PANEL_MODEL, _PANEL_PROMPTS, _PANEL_DRAFT = "Model", "Prompts", "Draft"
_PANEL_BUDGET, _PANEL_FILES, _PANEL_OUTPUT = "Budget", "Files", "Output"


class Dtype(StrEnum):
    """Number format of the weights; auto is the checkpoint's own where our runners serve it."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class RunnerChoice(StrEnum):
    """Which engine decodes; auto takes the fastest that proves equal to the reference."""

    AUTO = "auto"
    NATIVE = "native"
    GRAPHS = "graphs"
    FAST = "fast"
    REFERENCE = "reference"


def complete_model(incomplete: str) -> list[str]:
    """Aliases that begin like ``incomplete``, for the shell's completion."""
    from selfspec_tune.models.aliases import ALIASES

    return [alias for alias in ALIASES if alias.startswith(incomplete.lower())]


ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="Alias (see `selfspec-tune models`), hub id, local directory or .gguf file.",
        show_default=_MODEL.name,
        autocompletion=complete_model,
        rich_help_panel=_PANEL_MODEL,
    ),
]
DtypeName = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Number format; auto: the checkpoint's own.",
        show_default=_MODEL.dtype,
        rich_help_panel=_PANEL_MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="D",
        help="cpu, cuda, cuda:1 …",
        show_default=_MODEL.device,
        rich_help_panel=_PANEL_MODEL,
    ),
]
RunnerName = Annotated[
    RunnerChoice | None,
    typer.Option(
        "--runner",
        help="Engine; native needs a CPU, and kernels from a wheel or a C compiler; graphs needs a GPU.",
        show_default=_MODEL.runner,
        rich_help_panel=_PANEL_MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model.",
        rich_help_panel=_PANEL_MODEL,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Load weights that are not safetensors; they can run code.",
        rich_help_panel=_PANEL_MODEL,
    ),
]

Revision = Annotated[
    str | None,
    typer.Option(
        metavar="R",
        help="Branch, tag or commit of a hub id.",
        show_default="the hub's, and a study's own where one is resumed",
        rich_help_panel=_PANEL_MODEL,
    ),
]

PromptSource = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="P",
        help="builtin, humaneval, a local file or folder, a preset such as gsm8k, or preset:FILE.",
        show_default=_PROMPTS.source,
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
NumPrompts = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Prompts to draw, over all splits.",
        show_default=f"{DEFAULT_NUM_PROMPTS}, or all where there are fewer",
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Prompts of this task only; each task is split on its own. Repeatable.",
        show_default="all",
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens to decode for each prompt, at most.",
        show_default=str(_PROMPTS.max_new_tokens),
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="0 decodes greedily.",
        show_default=f"{_PROMPTS.temperature:g}",
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample from the likeliest tokens that make up this probability; without effect at temperature 0.",
        show_default=f"{_PROMPTS.top_p:g}",
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Sample from this many likeliest tokens; 0: from all. Without effect at temperature 0.",
        show_default=str(_PROMPTS.top_k),
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
TemplateName = Annotated[
    Template | None,
    typer.Option(
        "--template",
        help="Wrap prompts in the chat template.",
        show_default=_PROMPTS.template,
        rich_help_panel=_PANEL_PROMPTS,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="S",
        help="Of prompts, splits, sampling and search.",
        show_default=str(_PROMPTS.seed),
        rich_help_panel=_PANEL_PROMPTS,
    ),
]

StrategyChoice = Annotated[
    StrategyName | None,
    typer.Option(
        "--strategy",
        help="How to search; all but staged are there to compare with. cmaes needs the extra 'search'.",
        show_default=StrategyName.STAGED.value,
        rich_help_panel=_PANEL_BUDGET,
    ),
]
PolicyName = Annotated[
    PolicyChoice | None,
    typer.Option(
        "--policy",
        help="When a draft ends. auto searches cost-aware and threshold.",
        show_default=_DRAFT.policy,
        rich_help_panel=_PANEL_DRAFT,
    ),
]
MaxDraftTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Longest draft.",
        show_default="found by the search",
        rich_help_panel=_PANEL_DRAFT,
    ),
]
ExitThreshold = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0.0,
        max=1.0,
        help="Draft probability below which a draft ends.",
        show_default="found by the search",
        rich_help_panel=_PANEL_DRAFT,
    ),
]
DraftVocabulary = Annotated[
    str | None,
    typer.Option(
        "--draft-vocab",
        metavar="auto|full|N",
        help="Draft from the first N token ids only.",
        show_default=_DRAFT.vocabulary,
        rich_help_panel=_PANEL_DRAFT,
    ),
]

Ngram = Annotated[
    bool | None,
    typer.Option(
        "--ngram/--no-ngram",
        help="Draft from the context first, where its last tokens occurred before.",
        show_default="ngram",
        rich_help_panel=_PANEL_DRAFT,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--draft-precision",
        metavar="TEXT",
        help="Weights to draft with: auto, or such as same, int4, 'int4 head int8' or 'int8 attn 0-3; int4 mlp 4-9'.",
        show_default=_DRAFT.precision,
        rich_help_panel=_PANEL_DRAFT,
    ),
]
ExtraMemory = Annotated[
    str | None,
    typer.Option(
        "--extra-memory",
        metavar="30%|2GiB|0",
        help="Most memory for low-precision copies of weights.",
        show_default=str(_DRAFT.extra_memory),
        rich_help_panel=_PANEL_DRAFT,
    ),
]
ObjectiveChoice = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        help=(
            "shared: the draft uses the model's cache, as this program and model.generate can. standalone: it has its "
            "own, as a draft exported to a server has, which accepts less."
        ),
        show_default=_DRAFT.objective.value,
        rich_help_panel=_PANEL_DRAFT,
    ),
]
StartFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--start-from",
        metavar="FILE|STUDY|TEXT",
        help=(
            "Begin from a skip.json, a study's folder, a file of any dialect, or a text such as 'attn 2-9 · mlp 3,5'; "
            "rescaled where its model has another depth. Repeatable."
        ),
        show_default=False,
        rich_help_panel=_PANEL_BUDGET,
    ),
]
StudyFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The study's folder.", show_default="studies/<model>-<prompts>…"),
]
Trials = Annotated[int | None, typer.Option(metavar="N", help="Trials at most.", rich_help_panel=_PANEL_BUDGET)]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="45m",
        help="Time for the search; compare gives as much to each strategy, and then measures.",
        show_default=f"{DEFAULT_TIMEOUT} unless --trials is given",
        rich_help_panel=_PANEL_BUDGET,
    ),
]
PerTask = Annotated[
    bool,
    typer.Option(
        "--per-task",
        help=(
            "One search over all tasks of the prompts and one for each, in DIR/all and DIR/TASK; half of the time is "
            "shared equally, half by the number of prompts. Then, in further time, what each draft is worth on every "
            "task, and whether picking one by prompt would pay."
        ),
        rich_help_panel=_PANEL_BUDGET,
    ),
]
TransferPlot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="With --per-task: draw the speedups of all drafts on all tasks, .svg or .png.",
        show_default=False,
        rich_help_panel=_PANEL_FILES,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; run nothing.")]

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object and nothing else on standard output.",
        rich_help_panel=_PANEL_OUTPUT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.", rich_help_panel=_PANEL_OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL_OUTPUT)]
ModelOfFile = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="Model, where the file does not name it: alias or local directory.",
        autocompletion=complete_model,
    ),
]

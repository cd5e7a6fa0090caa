"""Options of generate alone, and those whose defaults are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfspec_tune.cli import options
from selfspec_tune.model.generation import Sampling

_PANEL_ANSWER, _PANEL_OUTPUT = "Answer", "Output"
_SAMPLING = Sampling()

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY|SKIP.json|MODEL",
        help="A study's folder, a skip.json, any dialect's file with --model, or a model alone.",
        show_default="the newest study, or --model alone",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="Alias, hub id, local directory or .gguf file.",
        show_default="the study's",
        autocompletion=options.complete_model,
        rich_help_panel="Model",
    ),
]
PromptText = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What to answer.",
        show_default="standard input; in a terminal a conversation",
        rich_help_panel=_PANEL_ANSWER,
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="F",
        help="A file that holds what to answer, but for a newline at its end.",
        show_default=False,
        rich_help_panel=_PANEL_ANSWER,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens of an answer, at most.",
        show_default=str(_SAMPLING.max_new_tokens),
        rich_help_panel=_PANEL_ANSWER,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample from tokens at least so many times as likely as the likeliest; 0: from all.",
        show_default=f"{_SAMPLING.min_p:g}",
        rich_help_panel=_PANEL_ANSWER,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Above 1, tokens that occurred before are less likely.",
        show_default=f"{_SAMPLING.repetition_penalty:g}",
        rich_help_panel=_PANEL_ANSWER,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="S", help="Of sampling.", show_default="another each time", rich_help_panel=_PANEL_ANSWER),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End an answer before this text. Repeatable.",
        show_default=False,
        rich_help_panel=_PANEL_ANSWER,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The system message before all others.",
        show_default=False,
        rich_help_panel=_PANEL_ANSWER,
    ),
]
ShowDrafts = Annotated[
    bool,
    typer.Option(
        "--show-drafts",
        help="Colour accepted draft tokens by who drafted them, and strike rejected ones; needs a terminal.",
        rich_help_panel=_PANEL_OUTPUT,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare", help="Decode plainly after each answer, and print the ratio.", rich_help_panel=_PANEL_OUTPUT
    ),
]

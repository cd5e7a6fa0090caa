"""Options of generate alone, and those that are its own by default."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.cli.options.option import Option, Panel
from selfspec_tune.model.generation import Sampling

_GENERATE = ("generate",)

OPTIONS = (
    Option(
        "source",
        str,
        "A study's folder, a skip.json, any dialect's file with --model, or a model alone.",
        _GENERATE,
        metavar="STUDY|SKIP.json|MODEL",
        default="the newest study, or --model alone",
        is_argument=True,
    ),
    Option(
        "prompt",
        str,
        "What to answer.",
        _GENERATE,
        metavar="TEXT",
        panel=Panel.ANSWER,
        default="standard input; in a terminal a conversation",
    ),
    Option(
        "prompt_file",
        Path,
        "A file that holds what to answer, but for a newline at its end.",
        _GENERATE,
        metavar="F",
        panel=Panel.ANSWER,
    ),
    Option("system", str, "The system message before all others.", _GENERATE, metavar="TEXT", panel=Panel.ANSWER),
    Option(
        "max_new_tokens",
        int,
        "Tokens of an answer, at most.",
        _GENERATE,
        Sampling,
        metavar="N",
        panel=Panel.ANSWER,
    ),
    Option(
        "min_p",
        float,
        "Sample from tokens at least so many times as likely as the likeliest; 0: from all.",
        _GENERATE,
        Sampling,
        metavar="P",
        panel=Panel.ANSWER,
    ),
    Option(
        "repetition_penalty",
        float,
        "Above 1, tokens that occurred before are less likely.",
        _GENERATE,
        Sampling,
        metavar="X",
        panel=Panel.ANSWER,
    ),
    Option(
        "seed",
        int,
        "Of sampling.",
        _GENERATE,
        Sampling,
        metavar="S",
        panel=Panel.ANSWER,
        default="another each time",
    ),
    Option(
        "stop",
        str,
        "End an answer before this text. Repeatable.",
        _GENERATE,
        Sampling,
        metavar="TEXT",
        panel=Panel.ANSWER,
        is_repeated=True,
    ),
    Option(
        "show_drafts",
        bool,
        "Colour accepted draft tokens by who drafted them, and strike rejected ones; needs a terminal.",
        _GENERATE,
        panel=Panel.OUTPUT,
    ),
    Option("compare", bool, "Decode plainly after each answer, and print the ratio.", _GENERATE, panel=Panel.OUTPUT),
)

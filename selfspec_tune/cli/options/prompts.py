"""Options of prompts and of sampling, which mean the same wherever tokens are decoded."""

from __future__ import annotations

from selfspec_tune.cli.options.option import OF_STUDY, Option, Panel
from selfspec_tune.cli.options.shared import DECODING, READING
from selfspec_tune.prompts.render import Template
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, PromptOptions, Sampling

_BENCH_OF_STUDY = {"bench": {"default": OF_STUDY}}

OPTIONS = (
    Option(
        "prompts",
        str,
        "builtin, humaneval, a local file or folder, a preset such as gsm8k, or preset:FILE.",
        READING,
        PromptOptions,
        metavar="P",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "num_prompts",
        int,
        "Prompts to draw, over all splits.",
        READING,
        PromptOptions,
        metavar="N",
        panel=Panel.PROMPTS,
        default=f"{DEFAULT_NUM_PROMPTS}, or all where there are fewer",
        differs={
            "bench": {
                "help": "Prompts to measure, of those that no search read.",
                "default": "the study's test split; without a study {}",
            }
        },
    ),
    Option(
        "tasks",
        str,
        "Prompts of this task only; each task is split on its own. Repeatable.",
        READING,
        PromptOptions,
        metavar="NAME",
        panel=Panel.PROMPTS,
        default="all",
        flags=("--task",),
        is_repeated=True,
        differs={"bench": {"help": "Prompts of this task only. Repeatable.", "default": OF_STUDY}},
    ),
    Option(
        "max_new_tokens",
        int,
        "Tokens to decode for each prompt, at most.",
        READING,
        PromptOptions,
        metavar="N",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "temperature",
        float,
        "0 decodes greedily.",
        DECODING,
        Sampling,
        metavar="T",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "top_p",
        float,
        "Sample from the likeliest tokens that make up this probability; without effect at temperature 0.",
        DECODING,
        Sampling,
        metavar="P",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "top_k",
        int,
        "Sample from this many likeliest tokens; 0: from all. Without effect at temperature 0.",
        DECODING,
        Sampling,
        metavar="K",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "min_p",
        float,
        "Sample from tokens at least so many times as likely as the likeliest; 0: from all. Without effect at "
        "temperature 0.",
        DECODING,
        Sampling,
        metavar="P",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "repetition_penalty",
        float,
        "Above 1, tokens that occurred before are less likely.",
        DECODING,
        Sampling,
        metavar="X",
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "template",
        Template,
        "Wrap prompts in the chat template.",
        DECODING,
        PromptOptions,
        panel=Panel.PROMPTS,
        differs=_BENCH_OF_STUDY,
    ),
    Option(
        "seed",
        int,
        "Of prompts, splits, sampling and search.",
        READING,
        PromptOptions,
        metavar="S",
        panel=Panel.PROMPTS,
        differs={"bench": {"help": "Of prompts, sampling and random skipping.", "default": OF_STUDY}},
    ),
)

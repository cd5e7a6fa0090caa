"""Prompts: where they come from, how they are split, how they become token ids.

source ─► load_prompts ─► split_prompts ─► check_characters ─► render ─► fit_context
"""

from __future__ import annotations

from selfspec_tune.prompts.load import BUILTIN, PRESETS, Preset, load_prompts
from selfspec_tune.prompts.prompt import Prompt, tokens_hash
from selfspec_tune.prompts.render import (
    Template,
    Tokenizer,
    check_characters,
    fit_context,
    fit_vocabulary,
    may_fit,
    render,
    those_that_fit,
)
from selfspec_tune.prompts.splits import (
    Splits,
    default_split_sizes,
    draw_prompts,
    split_each_task,
    split_prompts,
    those_unread,
)

__all__ = [
    "BUILTIN",
    "PRESETS",
    "Preset",
    "Prompt",
    "Splits",
    "Template",
    "Tokenizer",
    "check_characters",
    "default_split_sizes",
    "draw_prompts",
    "fit_context",
    "fit_vocabulary",
    "load_prompts",
    "may_fit",
    "render",
    "split_each_task",
    "split_prompts",
    "those_that_fit",
    "those_unread",
    "tokens_hash",
]

"""What a checkpoint asks of decoding: its ``generation_config``, which servers follow unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.errors import FileFormatError
from selfspec_tune.models.model_files import (
    COUNT,
    FLAG,
    LIST,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHARE,
    SIZE,
    TOKEN,
    Rule,
    by_key,
    read_object,
    unfit,
)
from selfspec_tune.requests import Sampling

# Settings that decide which token comes next, with the value that leaves it to the model alone.
NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}


FILE = "generation_config.json"
_ENDS = "eos_token_id"
_KINDS: Mapping[Rule, tuple[str, ...]] = {
    FLAG: ("do_sample",),
    NOT_NEGATIVE: ("temperature", "epsilon_cutoff", "eta_cutoff", "penalty_alpha"),
    POSITIVE: ("repetition_penalty", "encoder_repetition_penalty"),
    NUMBER: ("presence_penalty", "frequency_penalty", "guidance_scale"),
    SHARE: ("top_p", "top_h", "min_p", "typical_p"),
    COUNT: ("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
    SIZE: ("num_beams", "num_beam_groups", "max_length", "max_new_tokens"),
    LIST: ("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
    TOKEN: (_ENDS, "bos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"),
}
_RULES = by_key(_KINDS)


def own_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a ``generation_config`` that decide which token comes next; nonsense is none."""
    nonsense = {name for name, _ in unfit(generation_config, _RULES)}
    return {
        name: generation_config[name]
        for name, neutral in NEUTRAL.items()
        if name not in nonsense and generation_config.get(name) not in (None, neutral, [], {})
    }


def faults_of(generation_config: Mapping[str, Any]) -> list[str]:
    """What is of another kind than it should be, each in a clause."""
    return [fault for _, fault in unfit(generation_config, _RULES)]


def check_generation_file(folder: Path) -> list[str]:
    """What a user should be told of the values in a checkpoint's generation_config.json, if it has any.

    Raises `FileFormatError` where the file is no object, or its end-of-sequence tokens are none: transformers takes
    others then without a word, or breaks.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        values = read_object(file)
    except FileFormatError as error:
        raise FileFormatError(
            f"{error} Without it config.json says where answers end: remove it to go by that."
        ) from error
    unfitting = dict(unfit(values, _RULES))
    if fault := unfitting.get(_ENDS):
        raise FileFormatError(f"{file}: {fault}. Mend it there, or get the file again.")
    return [f"{file}: {fault}. It is passed over" for fault in unfitting.values()]


def ignored_settings(own: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
    """Those of a checkpoint's `own_settings` that decoding by our options, greedy at temperature 0, does not follow."""
    ours = {**NEUTRAL, "do_sample": not sampling.greedy, **sampling.in_force}
    return {name: value for name, value in own.items() if ours[name] != value}


def in_words(settings: Mapping[str, Any]) -> str:
    """As in ``repetition_penalty 1.1, top_k 20``."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())

"""What a checkpoint asks of decoding: its ``generation_config``, which servers follow unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def own_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a ``generation_config`` that decide which token comes next."""
    return {
        name: generation_config[name]
        for name, neutral in NEUTRAL.items()
        if generation_config.get(name) not in (None, neutral, [], {})
    }


def ignored_settings(own: Mapping[str, Any], *, temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    """Those of a checkpoint's `own_settings` that decoding by our options, greedy at temperature 0, does not follow."""
    ours = {**NEUTRAL, "do_sample": False}
    if temperature > 0:
        ours |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    return {name: value for name, value in own.items() if ours[name] != value}


def in_words(settings: Mapping[str, Any]) -> str:
    """As in ``repetition_penalty 1.1, top_k 20``."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())

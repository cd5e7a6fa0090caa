"""What a skip.json says of decoding with its draft: the options that it was measured with, and a forecast.

A server follows the ``generation_config`` that comes with a checkpoint, or defaults of its own, unless it is told
otherwise.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfspec_tune.draft import experts_a_token
from selfspec_tune.files import read_json
from selfspec_tune.models.generation_settings import NEUTRAL, ignored_settings, in_words, own_settings
from selfspec_tune.requests import Sampling
from selfspec_tune.results import Score, SkipConfig

# Options of servers, in the order of their lines. MLX's takes a repetition penalty from requests alone.
_MLX = {"temperature": "--temp", "top_p": "--top-p", "top_k": "--top-k", "min_p": "--min-p"}
_LLAMACPP = {**_MLX, "repetition_penalty": "--repeat-penalty"}
DEFAULT_DRAFT_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSampling(Sampling):
    """What was measured, for other runtimes. ``ignored``: what the target's ``generation_config`` asks for besides."""

    ignored: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def measured(cls, config: SkipConfig | None, own: Mapping[str, Any]) -> MeasuredSampling:
        """What ``config`` was measured with, else greedy; ``own``: the target's `own_settings`. Raises `UsageError`."""
        prompts = (config.provenance.get("prompts") or {}) if config else {}
        found = Sampling(**{name: prompts[name] for name in Sampling.__dataclass_fields__ if name in prompts})
        return cls(**found.sampling, ignored=ignored_settings(own, found))

    @property
    def notes(self) -> list[str]:
        """What a user should know of it."""
        notes = []
        if self.ignored:
            notes.append(
                f"The target's generation_config asks for {in_words(self.ignored)}. Nothing was measured with that, so "
                "the lines turn it off where a runtime can be told; a request may still ask for it."
            )
        return notes

    @property
    def of_request(self) -> dict[str, Any]:
        """What a request states that is to be decoded so."""
        return {"temperature": self.temperature, **self.in_force}

    @property
    def vllm(self) -> str:
        """Options of ``vllm serve``."""
        values = shlex.quote(json.dumps(self.of_request))
        return f"--generation-config vllm --override-generation-config {values}"

    @property
    def sglang(self) -> str:
        """Options of SGLang's server, whose requests state the rest."""
        return "--sampling-defaults openai"

    @property
    def mlx(self) -> str:
        """Options of ``mlx_lm.server``."""
        return _as_options(_MLX, self.of_request)

    @property
    def llamacpp(self) -> str:
        """Options of ``llama-server``, which samples by some of them unless told otherwise."""
        usual = {"repetition_penalty": 1.0} if self.greedy else {"min_p": 0.0, "repetition_penalty": 1.0}
        return _as_options(_LLAMACPP, {**self.of_request, **usual, **self.in_force})

    @property
    def transformers(self) -> str:
        """Arguments of ``model.generate``."""
        values: dict[str, Any] = {"do_sample": not self.greedy, **self.in_force}
        # None would be filled in again from the checkpoint's own.
        shaped = [name for name in self.ignored if name not in ("do_sample", *Sampling().recorded, *values)]
        values |= {name: NEUTRAL[name] for name in shaped if NEUTRAL[name] is not None}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _as_options(flags: Mapping[str, str], values: Mapping[str, Any]) -> str:
    return " ".join(f"{flag} {values[name]:g}" for name, flag in flags.items() if name in values)


def settings_of_folder(folder: Path) -> dict[str, Any]:
    """The `own_settings` of the checkpoint in ``folder``: old ones have them in config.json."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        value = read_json(folder / name) if (folder / name).is_file() else {}
        found |= value if isinstance(value, dict) else {}
    return own_settings(found)


@dataclass(frozen=True, slots=True)
class Forecast:
    """How many tokens it should draft at a time, and what a user should expect, in words."""

    draft_tokens: int
    text: str


def forecast(config: SkipConfig | None) -> Forecast:
    """The search's own measurement where it judged standalone drafts, else its prediction, else that there is none."""
    if config is None:
        return Forecast(DEFAULT_DRAFT_TOKENS, _unknown("The file says nothing of how it was searched"))
    if config.objective == "standalone":
        return Forecast(config.draft.max_draft_tokens, _measured(config))
    predicted = (config.provenance.get("search") or {}).get("standalone")
    if not predicted:
        return Forecast(DEFAULT_DRAFT_TOKENS, _unknown("The skip set was searched to share the model's cache"))
    acceptance = predicted["acceptance_rate"]
    return Forecast(
        predicted["draft_tokens"],
        "The skip set was searched to share the model's cache, which an exported draft cannot. With keys and values of "
        f"its own it is predicted to decode {predicted['decode_speedup']:.2f}x as fast as the model alone, drafting "
        f"{predicted['draft_tokens']} tokens of which {_share(acceptance)} are accepted{_shared(config)}. "
        f"A search with `objective` standalone finds better ones.{_rule(config, exact=True)}",
    )


def dropped(config: SkipConfig | None, *, keeps_experts: bool = False) -> list[str]:
    """What the skip set drafted with in its search and an export does not carry, as notes.

    ``keeps_experts``: whether a token goes to as many experts there as in the search.
    """
    if config is None:
        return []
    lost = [
        *(["low-precision copies"] if config.draft.precision != "same" else []),
        *(source.title for source in config.draft.sources),
    ]
    notes = [f"Searched with {' and '.join(lost)}, which no export carries: it gains less."] if lost else []
    if config.draft.experts is not None and not keeps_experts:
        notes += [
            f"Searched with {experts_a_token(config.draft.experts)}, which `to` hf-draft and `to` "
            "transformers-generate alone carry: it gains less."
        ]
    return notes


def _measured(config: SkipConfig) -> str:
    score, speedup = config.score, config.score.decode_speedup
    if speedup is None:
        return "Searched to stand alone; its search has measured nothing on test prompts yet."
    rule = _rule(config, exact=(config.provenance.get("search") or {}).get("acceptance"))
    return (
        f"Searched to stand alone: {speedup.value:.2f}x decode, {_share(score.acceptance_rate)} of "
        f"{config.draft.max_draft_tokens} drafted tokens accepted, in this program's engine on {score.num_prompts} "
        f"{score.split} prompts{_degenerate(score)}.{rule}"
    )


def _degenerate(score: Score) -> str:
    share = score.degenerate_share
    return "" if share is None else f" ({share:.0%} of the answers degenerate)"


def _rule(config: SkipConfig, *, exact: str | bool | None) -> str:
    """By which rule tokens were accepted where the target samples; empty where it decodes greedily."""
    temperature = (config.provenance.get("prompts") or {}).get("temperature") or 0.0
    if not temperature:
        return ""
    if exact:
        return (
            f" At temperature {temperature:g} a token counts as accepted where the target draws the draft's most "
            "probable one, as vLLM, SGLang, TensorRT-LLM and llama.cpp do by default; transformers accepts more."
        )
    return (
        f" At temperature {temperature:g} tokens were accepted by the ratio of both probabilities, as transformers "
        "does. vLLM, SGLang, TensorRT-LLM and llama.cpp keep by default only what the target draws too, and accept "
        "fewer: search again to know how many."
    )


def _shared(config: SkipConfig) -> str:
    rate = config.score.acceptance_rate
    return "" if rate is None else f" ({_share(rate)} when it shares them)"


def _share(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.0%}"


def _unknown(reason: str) -> str:
    return (
        f"{reason}: what it is worth as a draft that stands alone is not known. A bench with `runtime` measures "
        "it; a search with `objective` standalone finds sets for it."
    )

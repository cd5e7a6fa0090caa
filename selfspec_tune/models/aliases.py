"""Short names for models, and what they stand for.  Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Alias:
    """What a short name stands for.

    Attributes:
        hub_id: repository on the Hugging Face hub.
        num_layers: decoder layers; half the number of sub-layers.
        params: parameters, in billions.
        gated: whether the hub hands it out only after its licence was accepted.
        embedded: whether the project fetches it itself, without the hub.
        model_type: its architecture, by transformers' name.
        settings: what its configuration has otherwise than that architecture by default, and a runner minds.
    """

    hub_id: str
    num_layers: int
    params: float
    gated: bool = False
    embedded: bool = False
    model_type: str = "llama"
    settings: Mapping[str, Any] = field(default_factory=dict)


def _with_instruct(
    prefix: str,
    hub_prefix: str,
    sizes: dict[str, tuple[int, float]],
    *,
    instruct: str = "-Instruct",
    model_type: str = "llama",
) -> dict[str, Alias]:
    """A family of base models, each with its instruction-tuned sister, from {size: (layers, billions)}."""
    table: dict[str, Alias] = {}
    for size, (layers, params) in sizes.items():
        hub_id = f"{hub_prefix}{size.upper()}"
        gated = hub_prefix.startswith("meta-llama/")
        table[f"{prefix}{size}"] = Alias(hub_id, layers, params, gated, model_type=model_type)
        table[f"{prefix}{size}-instruct"] = Alias(f"{hub_id}{instruct}", layers, params, gated, model_type=model_type)
    return table


def _llama_2() -> dict[str, Alias]:
    table: dict[str, Alias] = {}
    for size, layers, params in (("7b", 32, 6.74), ("13b", 40, 13.0), ("70b", 80, 69.0)):
        for suffix in ("", "-chat"):
            hub_id = f"meta-llama/Llama-2-{size}{suffix}-hf"
            table[f"llama-2-{size}{suffix}"] = Alias(hub_id, layers, params, gated=True)
    return table


_MISTRAL: dict[str, Any] = {"model_type": "mistral", "settings": {"sliding_window": None}}  # none since v0.3

ALIASES: dict[str, Alias] = {
    DEFAULT_MODEL: Alias("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 0.135, embedded=True),
    "smollm2-360m": Alias("HuggingFaceTB/SmolLM2-360M-Instruct", 32, 0.362),
    "smollm2-1.7b": Alias("HuggingFaceTB/SmolLM2-1.7B-Instruct", 24, 1.71),
    **_llama_2(),
    **_with_instruct("llama-3-", "meta-llama/Meta-Llama-3-", {"8b": (32, 8.03), "70b": (80, 70.6)}),
    **_with_instruct("llama-3.1-", "meta-llama/Llama-3.1-", {"8b": (32, 8.03), "70b": (80, 70.6)}),
    **_with_instruct("llama-3.2-", "meta-llama/Llama-3.2-", {"1b": (16, 1.24), "3b": (28, 3.21)}),
    "llama-3.3-70b-instruct": Alias("meta-llama/Llama-3.3-70B-Instruct", 80, 70.6, gated=True),
    "codellama-7b": Alias("codellama/CodeLlama-7b-hf", 32, 6.74),
    "codellama-13b": Alias("codellama/CodeLlama-13b-hf", 40, 13.0),
    "codellama-34b": Alias("codellama/CodeLlama-34b-hf", 48, 33.7),
    **_with_instruct(
        "qwen2.5-",
        "Qwen/Qwen2.5-",
        {
            "0.5b": (24, 0.494),
            "1.5b": (28, 1.54),
            "3b": (36, 3.09),
            "7b": (28, 7.62),
            "14b": (48, 14.8),
            "32b": (64, 32.8),
            "72b": (80, 72.7),
        },
        model_type="qwen2",
    ),
    **_with_instruct(
        "qwen2.5-coder-",
        "Qwen/Qwen2.5-Coder-",
        {
            "0.5b": (24, 0.494),
            "1.5b": (28, 1.54),
            "3b": (36, 3.09),
            "7b": (28, 7.62),
            "14b": (48, 14.8),
            "32b": (64, 32.8),
        },
        model_type="qwen2",
    ),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B", 28, 0.596, model_type="qwen3"),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B", 28, 1.72, model_type="qwen3"),
    "qwen3-4b": Alias("Qwen/Qwen3-4B", 36, 4.02, model_type="qwen3"),
    "qwen3-8b": Alias("Qwen/Qwen3-8B", 36, 8.19, model_type="qwen3"),
    "qwen3-14b": Alias("Qwen/Qwen3-14B", 40, 14.8, model_type="qwen3"),
    "qwen3-32b": Alias("Qwen/Qwen3-32B", 64, 32.8, model_type="qwen3"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3", 32, 7.25, **_MISTRAL),
    "mistral-7b-instruct": Alias("mistralai/Mistral-7B-Instruct-v0.3", 32, 7.25, **_MISTRAL),
    "tinyllama-1.1b": Alias("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 22, 1.10),
    "gemma-2-2b": Alias("google/gemma-2-2b", 26, 2.61, gated=True, model_type="gemma2"),
    "gemma-2-9b": Alias("google/gemma-2-9b", 42, 9.24, gated=True, model_type="gemma2"),
    "gemma-2-27b": Alias("google/gemma-2-27b", 46, 27.2, gated=True, model_type="gemma2"),
}


def resolve(name: str) -> Alias | None:
    """What ``name`` stands for, whatever its case, or None when it is no alias."""
    return ALIASES.get(name.lower())


def close_aliases(name: str) -> list[str]:
    """Up to three aliases spelt much like ``name``, best first."""
    return difflib.get_close_matches(name.lower(), ALIASES, n=3, cutoff=0.6)

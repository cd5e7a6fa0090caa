"""Short names for models, and what they stand for.  Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfspec_tune.plans.variants import LONG_ROPE

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
        settings: what its configuration has otherwise than its architecture usually, and a runner minds.
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


def _family(
    model_type: str, table: dict[str, tuple[str, int, float]], *, gated: bool = False, **settings: Any
) -> dict[str, Alias]:
    """Models of one architecture, from {alias: (hub id, layers, billions)}."""
    return {
        name: Alias(hub_id, layers, params, gated, model_type=model_type, settings=settings)
        for name, (hub_id, layers, params) in table.items()
    }


_MISTRAL: dict[str, Any] = {"model_type": "mistral"}
_WINDOWED: dict[str, Any] = {"model_type": "mistral", "settings": {"sliding_window": 32768}}

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
    **_family(
        "qwen3",
        {
            "qwen3-0.6b": ("Qwen/Qwen3-0.6B", 28, 0.596),
            "qwen3-1.7b": ("Qwen/Qwen3-1.7B", 28, 1.72),
            "qwen3-4b": ("Qwen/Qwen3-4B", 36, 4.02),
            "qwen3-4b-instruct-2507": ("Qwen/Qwen3-4B-Instruct-2507", 36, 4.02),
            "qwen3-8b": ("Qwen/Qwen3-8B", 36, 8.19),
            "qwen3-14b": ("Qwen/Qwen3-14B", 40, 14.8),
            "qwen3-32b": ("Qwen/Qwen3-32B", 64, 32.8),
        },
    ),
    **_family(
        "qwen3_moe",
        {
            "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B", 48, 30.5),
            "qwen3-30b-a3b-instruct-2507": ("Qwen/Qwen3-30B-A3B-Instruct-2507", 48, 30.5),
            "qwen3-coder-30b-a3b-instruct": ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 48, 30.5),
            "qwen3-235b-a22b": ("Qwen/Qwen3-235B-A22B", 94, 235),
        },
    ),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3", 32, 7.25, **_MISTRAL),
    "mistral-7b-instruct": Alias("mistralai/Mistral-7B-Instruct-v0.3", 32, 7.25, **_MISTRAL),
    "ministral-8b-instruct": Alias("mistralai/Ministral-8B-Instruct-2410", 36, 8.02, gated=True, **_WINDOWED),
    "mistral-nemo-12b-instruct": Alias("mistralai/Mistral-Nemo-Instruct-2407", 40, 12.2, **_MISTRAL),
    "mistral-small-24b": Alias("mistralai/Mistral-Small-24B-Base-2501", 40, 23.6, **_MISTRAL),
    "mistral-small-24b-instruct": Alias("mistralai/Mistral-Small-24B-Instruct-2501", 40, 23.6, **_MISTRAL),
    **_family(  # with what reads pictures, as those below
        "mistral3",
        {
            "mistral-small-3.1-24b-instruct": ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 40, 24.0),
            "mistral-small-3.2-24b-instruct": ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 40, 24.0),
        },
    ),
    **_family(
        "mistral3",
        {
            "ministral-3-3b-instruct": ("mistralai/Ministral-3-3B-Instruct-2512-BF16", 26, 3.85),
            "ministral-3-8b-instruct": ("mistralai/Ministral-3-8B-Instruct-2512-BF16", 34, 8.92),
            "ministral-3-14b-instruct": ("mistralai/Ministral-3-14B-Instruct-2512-BF16", 40, 13.9),
        },
        text_config={"model_type": "ministral3"},
    ),
    **_family(
        "mixtral",
        {
            "mixtral-8x7b": ("mistralai/Mixtral-8x7B-v0.1", 32, 46.7),
            "mixtral-8x7b-instruct": ("mistralai/Mixtral-8x7B-Instruct-v0.1", 32, 46.7),
            "mixtral-8x22b": ("mistralai/Mixtral-8x22B-v0.1", 56, 141),
            "mixtral-8x22b-instruct": ("mistralai/Mixtral-8x22B-Instruct-v0.1", 56, 141),
        },
    ),
    "tinyllama-1.1b": Alias("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 22, 1.10),
    **_family(
        "gemma2",
        {
            "gemma-2-2b": ("google/gemma-2-2b", 26, 2.61),
            "gemma-2-9b": ("google/gemma-2-9b", 42, 9.24),
            "gemma-2-27b": ("google/gemma-2-27b", 46, 27.2),
        },
        gated=True,
    ),
    **_family(
        "gemma3_text",
        {
            "gemma-3-270m": ("google/gemma-3-270m", 18, 0.268),
            "gemma-3-270m-instruct": ("google/gemma-3-270m-it", 18, 0.268),
            "gemma-3-1b": ("google/gemma-3-1b-pt", 26, 1.0),
            "gemma-3-1b-instruct": ("google/gemma-3-1b-it", 26, 1.0),
        },
        gated=True,
    ),
    **_family(  # with what reads pictures
        "gemma3",
        {
            "gemma-3-4b-instruct": ("google/gemma-3-4b-it", 34, 4.30),
            "gemma-3-12b-instruct": ("google/gemma-3-12b-it", 48, 12.2),
            "gemma-3-27b-instruct": ("google/gemma-3-27b-it", 62, 27.4),
        },
        gated=True,
    ),
    **_family(
        "llama4",
        {
            "llama-4-scout-instruct": ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 48, 109),
            "llama-4-maverick-instruct": ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 48, 402),
        },
        gated=True,
    ),
    "phi-3-mini-instruct": Alias(
        "microsoft/Phi-3-mini-4k-instruct", 32, 3.82, model_type="phi3", settings={"sliding_window": 2047}
    ),
    "phi-4": Alias("microsoft/phi-4", 40, 14.7, model_type="phi3"),
    "phi-4-mini-instruct": Alias("microsoft/Phi-4-mini-instruct", 32, 3.84, model_type="phi3", settings=LONG_ROPE),
    **_family(
        "olmo2",
        {
            "olmo-2-1b-instruct": ("allenai/OLMo-2-0425-1B-Instruct", 16, 1.48),
            "olmo-2-7b-instruct": ("allenai/OLMo-2-1124-7B-Instruct", 32, 7.30),
            "olmo-2-13b-instruct": ("allenai/OLMo-2-1124-13B-Instruct", 40, 13.7),
            "olmo-2-32b-instruct": ("allenai/OLMo-2-0325-32B-Instruct", 64, 32.2),
        },
    ),
    **_family(
        "olmo3",
        {
            "olmo-3-7b-instruct": ("allenai/Olmo-3-7B-Instruct", 32, 7.30),
            "olmo-3-7b-think": ("allenai/Olmo-3-7B-Think", 32, 7.30),
            "olmo-3-32b-think": ("allenai/Olmo-3-32B-Think", 64, 32.2),
        },
    ),
    **_family(
        "granite",
        {
            "granite-3.3-2b-instruct": ("ibm-granite/granite-3.3-2b-instruct", 40, 2.53),
            "granite-3.3-8b-instruct": ("ibm-granite/granite-3.3-8b-instruct", 40, 8.17),
        },
    ),
    **_family(  # those without Mamba
        "granitemoehybrid",
        {
            "granite-4.0-350m": ("ibm-granite/granite-4.0-350m", 28, 0.352),
            "granite-4.0-1b": ("ibm-granite/granite-4.0-1b", 40, 1.63),
            "granite-4.0-micro": ("ibm-granite/granite-4.0-micro", 40, 3.40),
        },
    ),
    "smollm3-3b": Alias("HuggingFaceTB/SmolLM3-3B", 36, 3.08, model_type="smollm3"),
    "glm-4-9b": Alias("zai-org/GLM-4-9B-0414", 40, 9.40, model_type="glm4"),
    "glm-4-32b": Alias("zai-org/GLM-4-32B-0414", 61, 32.6, model_type="glm4"),
    "gpt-oss-20b": Alias("openai/gpt-oss-20b", 24, 20.9, model_type="gpt_oss"),
    "gpt-oss-120b": Alias("openai/gpt-oss-120b", 36, 117, model_type="gpt_oss"),
    "olmoe-1b-7b-instruct": Alias("allenai/OLMoE-1B-7B-0924-Instruct", 16, 6.92, model_type="olmoe"),
}


def resolve(name: str) -> Alias | None:
    """What ``name`` stands for, whatever its case, or None when it is no alias."""
    return ALIASES.get(name.lower())


def close_aliases(name: str) -> list[str]:
    """Up to three aliases spelt much like ``name``, best first."""
    return difflib.get_close_matches(name.lower(), ALIASES, n=3, cutoff=0.6)

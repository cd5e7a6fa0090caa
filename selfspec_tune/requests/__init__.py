"""What a user asks for: plain values, no torch.

The command line builds these from its options; library users build them by hand. Nothing here touches a file.
"""

from __future__ import annotations

from selfspec_tune.requests.bench import (
    SHORTEST_CONTEXT,
    SWEEP_VALUES,
    BenchRequest,
    SweepKind,
    SweepRequest,
    log_beside,
)
from selfspec_tune.requests.draft import (
    EXACT_MATCH,
    LONGEST_DRAFT,
    SEARCHED_POLICIES,
    DraftOptions,
    ExtraMemory,
    Objective,
    PolicyChoice,
)
from selfspec_tune.requests.export import GGUF_WEIGHTS, DraftFormat, ExportRequest, RuntimeBenchRequest, RuntimeName
from selfspec_tune.requests.model import DEFAULT_MODEL, DoctorRequest, Dtype, ModelOptions, RunnerChoice
from selfspec_tune.requests.prompts import (
    DEFAULT_NUM_PROMPTS,
    LARGEST_SEED,
    LARGEST_TEMPERATURE,
    SMALLEST_TEMPERATURE,
    TEMPLATE_DATE,
    PromptOptions,
)
from selfspec_tune.requests.search import CompareRequest, SearchRequest, StrategyName

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_NUM_PROMPTS",
    "EXACT_MATCH",
    "GGUF_WEIGHTS",
    "LARGEST_SEED",
    "LARGEST_TEMPERATURE",
    "LONGEST_DRAFT",
    "SEARCHED_POLICIES",
    "SHORTEST_CONTEXT",
    "SMALLEST_TEMPERATURE",
    "SWEEP_VALUES",
    "TEMPLATE_DATE",
    "BenchRequest",
    "CompareRequest",
    "DoctorRequest",
    "DraftFormat",
    "DraftOptions",
    "Dtype",
    "ExportRequest",
    "ExtraMemory",
    "ModelOptions",
    "Objective",
    "PolicyChoice",
    "PromptOptions",
    "RunnerChoice",
    "RuntimeBenchRequest",
    "RuntimeName",
    "SearchRequest",
    "StrategyName",
    "SweepKind",
    "SweepRequest",
    "log_beside",
]

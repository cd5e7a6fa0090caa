"""The records that measuring leaves behind and the files that keep them.

record           what all of them share
runs             raw paired runs
logs             what the logs that keep such runs share
memory_limit     what the memory allowed while they were measured
metrics          from raw runs to figures
bench            bench.json and sweep.json
skip_config      skip.json
study            study.toml
runtime_bench    the result of a bench with ``runtime``
export_manifest  selfspec-export.json
transfer         transfer.json
diagnosis        what doctor finds out

Every file states its schema and version. Reading refuses another schema or a newer version
with `FileFormatError`; unknown fields of the same version are kept.
"""

from selfspec_tune.results.bench import (
    BenchResult,
    LosslessCount,
    MethodResult,
    ModelInfo,
    NullRun,
    PositionCounts,
    Ratio,
    SkipLayers,
    SweepPoint,
    SweepResult,
    TaskResult,
)
from selfspec_tune.results.export_manifest import MANIFEST, ExportManifest, Verification
from selfspec_tune.results.memory_limit import MemoryLimit, Spread
from selfspec_tune.results.record import Document, Record
from selfspec_tune.results.runs import ArmRun, Lossless, PairedRun, StopReason
from selfspec_tune.results.runtime_bench import RuntimeBench, RuntimeRun
from selfspec_tune.results.skip_config import DraftSettings, Score, SkipConfig
from selfspec_tune.results.study import StudyConfig
from selfspec_tune.results.transfer import RouterResult, TransferResult, TransferRow

__all__ = [
    "MANIFEST",
    "ArmRun",
    "BenchResult",
    "Document",
    "DraftSettings",
    "ExportManifest",
    "Lossless",
    "LosslessCount",
    "MemoryLimit",
    "MethodResult",
    "ModelInfo",
    "NullRun",
    "PairedRun",
    "PositionCounts",
    "Ratio",
    "Record",
    "RouterResult",
    "RuntimeBench",
    "RuntimeRun",
    "Score",
    "SkipConfig",
    "SkipLayers",
    "Spread",
    "StopReason",
    "StudyConfig",
    "SweepPoint",
    "SweepResult",
    "TaskResult",
    "TransferResult",
    "TransferRow",
    "Verification",
]

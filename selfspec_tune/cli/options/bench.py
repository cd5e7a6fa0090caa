"""Options of bench alone."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.cli.options.option import Option, Panel
from selfspec_tune.cli.options.shared import complete_model
from selfspec_tune.requests import SWEEP_VALUES, BenchRequest, RuntimeName, SweepKind

_BENCH = ("bench",)
_USUAL = "; ".join(f"{kind} {','.join(f'{value:g}' for value in SWEEP_VALUES[kind])}" for kind in SweepKind)

OPTIONS = (
    Option(
        "skip_files",
        Path,
        "skip.json, or any dialect's file with --model; with --runtime the folder of an export.",
        _BENCH,
        BenchRequest,
        metavar="SKIP.json",
        default="the newest study's",
        is_repeated=True,
        is_argument=True,
    ),
    Option(
        "skip_sets",
        str,
        "A further skip set, such as 'attn 2-9 · mlp 3,5'. Repeatable.",
        _BENCH,
        BenchRequest,
        metavar="TEXT|FILE",
        flags=("--skip-set",),
        is_repeated=True,
    ),
    Option("rounds", int, "Times each prompt is measured.", _BENCH, BenchRequest, metavar="N", least=1),
    Option(
        "reference_prompts",
        int,
        "Prompts for model.generate, uniform and random skipping, and A-A.",
        _BENCH,
        BenchRequest,
        metavar="N",
        least=1,
    ),
    Option("no_references", bool, "Leave uniform and random skipping out; with --rivals random only.", _BENCH),
    Option(
        "allow_calibration",
        bool,
        "Use prompts that the search read; marks the result in sample.",
        _BENCH,
        BenchRequest,
    ),
    Option(
        "parts",
        bool,
        "On every prompt also what the (first) draft is made of: its skip set alone, its low-precision copies alone, "
        "with the skip set and with the lookup, its lookup alone; and the whole draft under every other policy.",
        _BENCH,
        BenchRequest,
        panel=Panel.DRAFT,
    ),
    Option(
        "rivals",
        bool,
        "On every prompt also what a user would pick instead: model.generate, its prompt lookup and early exit, "
        "--draft-model, uniform skipping. A skip set from a file in Self-SD's form (keyed by the model, or a bare "
        "entry) or in SWIFT's (<model>_<task>) then drafts by that system's own policy.",
        _BENCH,
        BenchRequest,
        panel=Panel.RIVALS,
    ),
    Option(
        "draft_model",
        str,
        "With --rivals: a smaller model that drafts in transformers' assisted decoding.",
        _BENCH,
        BenchRequest,
        metavar="M",
        panel=Panel.RIVALS,
        completes=complete_model,
    ),
    Option(
        "early_exit",
        int,
        "With --rivals: layers that draft in transformers' early exit.",
        _BENCH,
        BenchRequest,
        metavar="N",
        panel=Panel.RIVALS,
        default="a third of them",
        least=1,
    ),
    Option(
        "runtime",
        RuntimeName,
        "Measure an export, given by its folder, in another runtime: its target alone against its target with it. "
        "Prompts are then builtin, 64 of those that no search read, unless others are given.",
        _BENCH,
        panel=Panel.RIVALS,
    ),
    Option(
        "sweep",
        SweepKind,
        "Measure how the speedup moves: with the prompts' length (other prompts of the source before them, nothing "
        "repeated), the sampling temperature, or the longest draft. All values are interleaved in one run.",
        _BENCH,
        panel=Panel.SWEEP,
    ),
    Option(
        "sweep_values",
        str,
        "Values to measure.",
        _BENCH,
        metavar="A,B,…",
        panel=Panel.SWEEP,
        default=f"{_USUAL}; as far as the model allows",
    ),
    Option(
        "plot",
        Path,
        "Draw the sweep; needs matplotlib, which the extra named plots brings.",
        _BENCH,
        metavar="F.png|F.svg",
        panel=Panel.SWEEP,
    ),
    Option("csv", Path, "Write a row a method.", _BENCH, metavar="F", panel=Panel.FILES),
    Option("parquet", Path, "Write a row a method.", _BENCH, metavar="F", panel=Panel.FILES),
    Option("spec_bench", Path, "Write Spec-Bench answer rows.", _BENCH, metavar="F.jsonl", panel=Panel.FILES),
    Option(
        "out",
        Path,
        "Write the result with its raw runs. They go to bench.runs.jsonl beside it as they come, and the same command "
        "resumes from there; methods added later are measured beside a baseline of their own.",
        _BENCH,
        metavar="bench.json",
        panel=Panel.FILES,
    ),
    Option(
        "fresh",
        bool,
        "Measure again what --out holds; the earlier runs are kept as bench.runs.jsonl.1, .2, …",
        _BENCH,
        BenchRequest,
        panel=Panel.FILES,
    ),
)

"""A search for a model of 70 billion parameters on eight GPUs, computed from shapes and stated assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from growth_calibration import kv_bytes
from growth_trials import joint_space

from selfspec_tune.prompts.splits import default_split_sizes
from selfspec_tune.search import budget
from selfspec_tune.search.estimates import Costs, Estimates, Sizes
from selfspec_tune.search.stages.calibration import HELD_OUT, IMPORTANCE, TEXTS, Text
from selfspec_tune.search.stages.importance import num_steps

_BYTES = 2  # bfloat16
_INT4_BITS = 4.5  # a weight, scales included: what the engine's int4 copies hold
_MOST_TRIALS = 100_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-shaped model, its head not tied to its embedding."""

    name: str
    source: str
    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def attention_weights(self) -> int:
        """Of one layer: queries, output, keys, values."""
        return 2 * self.width**2 + 2 * self.width * self.kv_heads * self.head_size

    @property
    def mlp_weights(self) -> int:
        """Of one layer: gate, up, down."""
        return 3 * self.width * self.mlp_width

    @property
    def read_weights(self) -> int:
        """That a step reads: all but the embedding, of which it reads a row, and the norms, which are small."""
        return self.layers * (self.attention_weights + self.mlp_weights) + self.vocabulary * self.width

    @property
    def weights(self) -> int:
        return self.read_weights + self.vocabulary * self.width

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return kv_bytes(self.layers, self.kv_heads, self.head_size, _BYTES)


LLAMA_2_70B = Shape(
    "Llama-2-70B",
    "config.json of meta-llama/Llama-2-70b-hf; Touvron et al. 2023, Llama 2, table 1",
    layers=80,
    width=8192,
    mlp_width=28672,
    heads=64,
    kv_heads=8,
    vocabulary=32000,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Eight GPUs; all of it assumed. Nominal rates are those of an H100 SXM's data sheet, dense bfloat16.

    ``working``: how many of them work at a time; ``sync_seconds``: waiting in a pass through all layers.
    """

    name: str
    working: int
    sync_seconds: float
    gpus: int = 8
    memory_bytes: float = 80e9
    bytes_a_second: float = 3.35e12
    flops: float = 989e12
    bandwidth_share: float = 0.7
    flops_share: float = 0.4

    def pass_seconds(self, shape: Shape, tokens: float, context: float = 0.0) -> float:
        """One pass of all layers over ``tokens``: reading or computing, whichever takes longer."""
        read = _BYTES * shape.read_weights + shape.kv_bytes * context
        reading = read / (self.bytes_a_second * self.bandwidth_share * self.working)
        computing = 2 * shape.read_weights * tokens / (self.flops * self.flops_share * self.working)
        return max(reading, computing) + self.sync_seconds


MACHINES = (
    Machine("layers spread over the GPUs, one works at a time", 1, sync_seconds=7 * 20e-6),
    Machine("every layer split over all GPUs", 8, sync_seconds=160 * 15e-6),
)


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched on, assumed."""

    prompts: int = 64
    prompt_tokens: int = 200
    new_tokens: int = 128
    seconds: float = 45 * 60.0


def plan(shape: Shape, machine: Machine, task: Task, measured: dict[str, Any]) -> dict[str, Any]:
    """What a search would do in the task's time.

    ``measured`` on this machine: ``overheads`` of each trial at 2 × ``shape.layers`` sub-layers, in order, or
    none, and ``replay_seconds`` of a position. Everything else is computed.
    """
    middle = task.prompt_tokens + task.new_tokens / 2
    step = machine.pass_seconds(shape, 1, middle)
    prefill = machine.pass_seconds(shape, task.prompt_tokens)
    calibration, selection, test = default_split_sizes(task.prompts)
    answers = calibration + min(budget.NUM_HELD_OUT, selection)
    sizes = Sizes(calibration, selection, test, task.prompt_tokens, task.new_tokens)
    estimates = Estimates(sizes, Costs(step, prefill / task.prompt_tokens))
    schedule = estimates.full()
    reserved, trial = estimates.reserved(schedule), estimates.trial(schedule)
    evaluations = {text.name: _evaluation(text, shape, machine, measured["replay_seconds"]) for text in TEXTS}
    proxy = budget.proxy_seconds(task.seconds, task.seconds - reserved - budget.NUM_CANDIDATES * trial)
    importance = num_steps(joint_space(shape.layers)) + 1  # and the base
    stages = {
        "calibrate": answers * (prefill + task.new_tokens * step),
        "importance": importance * _evaluation(IMPORTANCE, shape, machine, measured["replay_seconds"]),
        "step costs": budget.costs_seconds(task.seconds),
        "proxy": proxy,
        "finalists and test": reserved,
    }
    left = max(task.seconds - sum(stages.values()), 0.0)
    trials, overhead = fitting(left, trial, measured["overheads"])
    counts, unspent = {}, proxy
    for text in TEXTS:
        counts[text.name] = int(text.share * unspent / evaluations[text.name])
        unspent -= text.share * unspent
    return {
        "shape": asdict(shape),
        "machine": asdict(machine),
        "task": asdict(task),
        "step_bytes": _BYTES * shape.read_weights + shape.kv_bytes * middle,
        "step_seconds": step,
        "prefill_seconds": prefill,
        "evaluation_seconds": evaluations,
        "evaluation_steps": {name: seconds / step for name, seconds in evaluations.items()},
        "importance_evaluations": importance,
        "stage_seconds": {**stages, "trials": left},
        "evaluations": counts,
        "trial_seconds": trial,
        "trials": trials,
        "overhead_seconds": overhead,
        "overhead_share": overhead / left if left else None,
        "gpu_bytes": gpu_bytes(shape, machine, task),
    }


def _evaluation(text: Text, shape: Shape, machine: Machine, replay_seconds: float) -> float:
    """One wide pass of a draft that skips nothing, the dearest there is, and the replay."""
    replayed = text.num_windows * text.length
    return machine.pass_seconds(shape, text.num_rows) + replayed * replay_seconds


def fitting(seconds: float, trial_seconds: float, overheads: Sequence[float]) -> tuple[int, float]:
    """How many trials fit, and what they cost beside their measurement; past the measured ones on a line."""
    slope, start = np.polyfit(range(len(overheads)), overheads, 1) if len(overheads) > 1 else (0.0, 0.0)
    spent = beside = 0.0
    for number in range(_MOST_TRIALS):
        overhead = overheads[number] if number < len(overheads) else max(float(start + slope * number), 0.0)
        if spent + trial_seconds + overhead > seconds:
            return number, beside
        spent += trial_seconds + overhead
        beside += overhead
    return _MOST_TRIALS, beside


def gpu_bytes(shape: Shape, machine: Machine, task: Task) -> dict[str, float]:
    """What each GPU holds at once at most: the texts of the first and the widest scorer and the held-out one's."""
    held = [TEXTS[0], TEXTS[-1], HELD_OUT]
    tokens = sum(text.num_windows * (task.prompt_tokens + task.new_tokens) for text in held)
    everything = {
        "weights": _BYTES * shape.weights,
        "int4 copies of all sub-layers and the head": _INT4_BITS / 8 * shape.read_weights,
        "cache of one sequence": shape.kv_bytes * (task.prompt_tokens + task.new_tokens),
        "calibration's keys and values": shape.kv_bytes * tokens,
    }
    return {name: value / machine.gpus for name, value in everything.items()}

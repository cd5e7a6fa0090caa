"""What a search would do, without doing it: splits, stages with their time, memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil

from selfspec_tune.measure.traffic import traffic_of
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.search import budget
from selfspec_tune.search.fitting import Fit, new_fit
from selfspec_tune.search.setup import SearchSetup, open_setup, tell_starts
from selfspec_tune.search.stages.importance import num_steps
from selfspec_tune.search.stages.ranker import NUM_PREFIXES
from selfspec_tune.search.starts import check_starts, to_predict


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A resolved request. ``stages``: (name, what it does, estimated seconds or None).

    ``first_prompts``: the first prompt of each task as the model will read it, special tokens included.
    """

    model: dict[str, Any]
    splits: dict[str, int]
    prompt_tokens: dict[str, int]
    first_prompts: dict[str, str]
    num_sublayers: int
    stages: list[tuple[str, str, float | None]]
    total_seconds: float | None
    memory_bytes: dict[str, int]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan_search(request: SearchRequest, reporter: Reporter, workload: Workload | None = None) -> SearchPlan:
    """Load the model, time a few steps, and say what a search would do; writes nothing.

    ``workload``: one that is open already, whose model and runner then serve.
    """
    check_starts(request)
    clock = budget.Clock(request.timeout_seconds)
    setting = open_setup(request, reporter, workload)
    tell_starts(setting.starts, reporter)
    reporter.stage("plan", "timing a few steps")
    loaded = setting.workload.loaded
    stages = _stages(new_fit(setting, clock.elapsed, reporter))
    known = [seconds for _, _, seconds in stages if seconds is not None]
    timeout = request.timeout_seconds
    items = (*setting.calibration, *setting.selection, *setting.test)
    lengths = [len(item.tokens) for item in items]
    first_of_task = {item.prompt.task: item for item in reversed(items)}
    return SearchPlan(
        model=loaded.describe(),
        splits={name: len(hashes) for name, hashes in setting.splits.hashes().items()},
        prompt_tokens={"min": min(lengths), "median": round(median(lengths)), "max": max(lengths)},
        first_prompts={
            task: str(loaded.tokenizer.decode(list(item.tokens), clean_up_tokenization_spaces=False))
            for task, item in sorted(first_of_task.items())
        },
        num_sublayers=2 * loaded.num_layers,
        stages=stages,
        total_seconds=max(sum(known), timeout or 0.0) if timeout else sum(known),
        memory_bytes=_memory(setting, max(lengths)),
        config=setting.config().to_dict(),
    )


def _stages(fit: Fit) -> list[tuple[str, str, float | None]]:
    setting, schedule, estimates = fit.setting, fit.schedule, fit.estimates
    request, seconds = setting.request, estimates.stages(fit.schedule)
    answers = schedule.num_calibration + schedule.num_held_out
    trials, timeout = budget.max_trials(request.trials, request.timeout_seconds), request.timeout_seconds
    one = estimates.trial(schedule)
    if timeout is not None:  # trials take what the others leave
        left = timeout - estimates.total(schedule) + schedule.num_trials * one
        trials = min(trials, max(1, int(left / one)))
    starts = f"starts ({len(to_predict(setting.starts))}), " if setting.starts else ""
    first = [("calibrate", f"{answers} answers by the full model", seconds["calibrate"])]
    if schedule.num_texts:
        passes = num_steps(setting.space)
        proposed = f"{starts}{NUM_PREFIXES} prefixes, a greedy path, local moves; the cost model"
        first += [
            ("importance", f"up to {passes} drafts without random sub-layers", seconds["importance"]),
            ("proxy", proposed, seconds["proxy"]),
        ]
    else:
        first += [("costs", "the cost model", seconds["proxy"])]
    finalists = f"{schedule.num_finalists} on {schedule.num_selection} selection prompts"
    return [
        *first,
        ("trials", f"about {trials} measured trials (more where some stop early)", trials * one),
        ("finalists", finalists if schedule.num_finalists > 1 else "none: no time", seconds["finalists"]),
        ("test", f"the winner alone on {schedule.num_test} prompts, once", seconds["test"]),
    ]


def _memory(setting: SearchSetup, longest_prompt: int) -> dict[str, int]:
    """Bytes of the weights, the KV cache and the calibration KV, and what is free now."""
    loaded = setting.workload.loaded
    weights = sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
    per_position = traffic_of(loaded).position
    positions = longest_prompt + setting.request.prompts.max_new_tokens
    return {
        "weights": weights,
        "kv_cache": per_position * positions,
        "calibration_kv": per_position * positions * budget.WIDE_WINDOWS,
        "available": int(psutil.virtual_memory().available),
    }

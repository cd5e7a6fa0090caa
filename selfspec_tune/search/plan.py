"""What a search would do, without doing it: splits, stages with their time, memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import psutil

from selfspec_tune.costs import StepCosts
from selfspec_tune.draft import Draft
from selfspec_tune.engine.costs import measure_step_costs
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import Objective, SearchRequest
from selfspec_tune.search import budget
from selfspec_tune.search.importance import num_steps
from selfspec_tune.search.ranking import NUM_PREFIXES
from selfspec_tune.search.setting import Setting, open_setting, tell_starts
from selfspec_tune.search.starts import to_predict
from selfspec_tune.search.strategies import strategy_for
from selfspec_tune.search.texts import texts_of
from selfspec_tune.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A resolved request. ``stages``: (name, what it does, estimated seconds or None)."""

    model: dict[str, Any]
    splits: dict[str, int]
    prompt_tokens: dict[str, int]
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
    setting = open_setting(request, reporter, workload)
    tell_starts(setting.starts, reporter)
    reporter.stage("plan", "timing a few steps")
    longest = max(setting.calibration or setting.test, key=lambda item: len(item.tokens))
    loaded = setting.workload.loaded
    costs = measure_step_costs(
        setting.workload.runner,
        longest.tokens,
        Draft(SkipSet.empty(loaded.num_layers)),
        context_length=loaded.context_length,
        repeats=2,
    )
    stages = _stages(setting, costs)
    known = [seconds for _, _, seconds in stages if seconds is not None]
    timeout = request.timeout_seconds
    lengths = [len(item.tokens) for item in (*setting.calibration, *setting.selection, *setting.test)]
    return SearchPlan(
        model=loaded.describe(),
        splits={name: len(hashes) for name, hashes in setting.splits.hashes().items()},
        prompt_tokens={"min": min(lengths), "median": round(median(lengths)), "max": max(lengths)},
        num_sublayers=2 * loaded.num_layers,
        stages=stages,
        total_seconds=max(sum(known), timeout or 0.0) if timeout else sum(known),
        memory_bytes=_memory(setting, max(lengths)),
        config=setting.config().to_dict(),
    )


def _importance_rows(setting: Setting) -> float:
    """Rows of a pass that tells importance; a draft that stands alone computes the prompts too."""
    objective = setting.request.draft.objective
    text = texts_of(objective).importance
    prompts = mean(len(item.tokens) for item in setting.calibration) if objective is Objective.STANDALONE else 0
    return text.num_rows + text.num_windows * prompts


def _stages(setting: Setting, costs: StepCosts) -> list[tuple[str, str, float | None]]:
    request, options = setting.request, setting.request.prompts
    shares, timeout = budget.shares_of(setting, costs), request.timeout_seconds
    has_proxy = strategy_for(request.strategy).has_proxy
    answers = len(setting.calibration) + min(budget.NUM_HELD_OUT, len(setting.selection))
    answers = answers if has_proxy else min(budget.TRIAL_ITEMS, len(setting.calibration))
    calibrate = answers * options.max_new_tokens * costs.decode
    row_seconds = costs.verify[-1] / len(costs.verify) / 4  # a wide pass costs less a token than verification
    passes = num_steps(setting.space)
    importance = passes * _importance_rows(setting) * row_seconds if has_proxy else 0.0
    proxy = budget.costs_seconds(timeout) + (budget.proxy_seconds(timeout, shares) if has_proxy else 0.0)
    before = calibrate + importance + proxy
    trials = budget.max_trials(request.trials, request.timeout_seconds)
    left = None if timeout is None else max(timeout - before - shares.reserved, 0.0)
    fitting = trials if left is None else min(trials, max(1, int(left / shares.trial)))
    starts = f"starts ({len(to_predict(setting.starts))}), " if setting.starts else ""
    first = [("calibrate", f"{answers} answers by the full model", calibrate)]
    if has_proxy:
        proposed = f"{starts}{NUM_PREFIXES} prefixes, a greedy path, local moves; the cost model"
        first += [("importance", f"{passes} drafts without random sub-layers", importance), ("proxy", proposed, proxy)]
    else:
        first += [("costs", "the cost model", proxy)]
    return [
        *first,
        ("trials", f"about {fitting} measured trials (more where some stop early)", fitting * shares.trial),
        ("finalists", f"{budget.NUM_FINALISTS} on the selection split", shares.selection),
        ("test", f"the winner alone on {len(setting.test)} prompts, once", shares.test),
    ]


def _memory(setting: Setting, longest_prompt: int) -> dict[str, int]:
    """Bytes of the weights, the KV cache and the calibration KV, and what is free now."""
    loaded = setting.workload.loaded
    config = loaded.model.config
    weights = sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_position = 2 * loaded.num_layers * heads * head_size * loaded.dtype.itemsize
    positions = longest_prompt + setting.request.prompts.max_new_tokens
    return {
        "weights": weights,
        "kv_cache": per_position * positions,
        "calibration_kv": per_position * positions * budget.WIDE_WINDOWS,
        "available": int(psutil.virtual_memory().available),
    }

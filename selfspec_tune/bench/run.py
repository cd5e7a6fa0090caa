"""``selfspec-tune bench``: skip sets against what a user would pick instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from selfspec_tune.bench.contest import Contest, shortened
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.sources import Source, gather, model_options, overridden, prompt_options
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.engine import autoregressive
from selfspec_tune.errors import PromptError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import (
    EMPTY,
    NULL,
    SELF_SPECULATIVE,
    Arm,
    autoregressive_arm,
    generate_arm,
    self_speculative_arm,
)
from selfspec_tune.measure.lossless import FLOAT32_FLOOR, LosslessCheck, numeric_floor
from selfspec_tune.measure.workload import WorkItem, Workload, load_some, open_workload
from selfspec_tune.prompts import Prompt, draw_prompts, load_prompts
from selfspec_tune.provenance import collect
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, BenchRequest, PromptOptions
from selfspec_tune.results import BenchResult, SkipConfig
from selfspec_tune.skip_set import SkipSet

_FLOOR_ITEMS = 4
_FLOOR_TOKENS = 24


def run_bench(request: BenchRequest, reporter: Reporter) -> BenchResult:
    """Measure every skip set of ``request`` against the baseline on prompts that no search of theirs read."""
    sources = gather(request)
    configs = [source.config for source in sources if source.config is not None]
    options = prompt_options(request, configs)
    prompts, in_sample = choose_prompts(request, options, configs)
    workload = open_workload(model_options(request, configs), options, reporter)
    contenders = _contenders(workload, sources, request)
    items = workload.items(prompts)
    contest = Contest(
        workload,
        make_check(workload, items),
        items,
        contenders,
        reference_arms(workload, contenders[0], uniform_and_random=request.uniform_and_random),
        num_reference_items=min(request.reference_prompts, len(items)),
        rounds=request.rounds,
    )
    reporter.stage("bench", f"{len(items)} prompts, {len(contest.arms) + 1} methods")
    return bench_result(
        workload,
        contest.arms,
        contest.run(reporter),
        split="in_sample" if in_sample else "test",
        in_sample=in_sample,
        provenance=bench_provenance(workload, contest.check, prompts={**asdict(options), "test": _hashes(prompts)}),
    )


def choose_prompts(
    request: BenchRequest, options: PromptOptions, configs: Sequence[SkipConfig]
) -> tuple[list[Prompt], bool]:
    """Prompts to bench on, and whether a search had read any of them.

    With the options of a study these are the prompts of its test split; with
    ``num_prompts`` given, as many unread ones of the source. Raises `PromptError` where
    too few remain.
    """
    read = frozenset(h for config in configs for h in config.prompt_hashes("calibration", "selection"))
    is_asked = "num_prompts" in dict(request.prompt_overrides)
    if request.allow_calibration:
        drawn = load_some(options)
        return list(drawn), any(prompt.hash in read for prompt in drawn)
    if is_asked and options.num_prompts is not None:
        wanted = options.num_prompts
        in_order = load_prompts(options.source, seed=options.seed)
        ordered = draw_prompts(in_order, len(in_order), seed=options.seed)
        unread = [prompt for prompt in ordered if prompt.hash not in read][:wanted]
    else:
        wanted = 1
        # Another source than the study's may hold fewer prompts than the study drew.
        everything = load_prompts(options.source)
        most = min(len(everything), options.num_prompts or DEFAULT_NUM_PROMPTS)
        unread = [p for p in draw_prompts(everything, most, seed=options.seed) if p.hash not in read]
    if len(unread) < wanted:
        raise PromptError(
            f"{options.source} has {len(unread)} prompts that the search did not read; {wanted} were asked for. "
            "Lower --num-prompts, give other --prompts, or pass --allow-calibration (the result is then in-sample)."
        )
    return unread, False


def make_check(workload: Workload, items: Sequence[WorkItem]) -> LosslessCheck:
    """A lossless check whose numeric floor is the largest found on the answers to a few items."""
    runner, dtype = workload.runner, workload.loaded.dtype
    if dtype == torch.float32 or not workload.sampler.greedy:
        return LosslessCheck(runner, FLOAT32_FLOOR, sampled=not workload.sampler.greedy)
    floors = []
    for item in items[:_FLOOR_ITEMS]:
        short = shortened(item, _FLOOR_TOKENS)
        answer = autoregressive(runner, short.tokens, short.limits, workload.sampler).tokens
        floors.append(numeric_floor(runner, item, answer))
    return LosslessCheck(runner, float(torch.tensor(floors).max()))


def bench_provenance(workload: Workload, check: LosslessCheck, **extra: Any) -> dict[str, Any]:
    """Where a measurement comes from: program, machine, model, threads, prompts."""
    loaded = workload.loaded
    return collect(
        model=loaded.describe(),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        gpu=torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        seed=workload.options.seed,
        runner=workload.runner.name,
        numeric_floor=check.floor,
        **extra,
    )


def _contenders(workload: Workload, sources: Sequence[Source], request: BenchRequest) -> list[Arm]:
    arms: dict[str, Arm] = {}
    default: Draft | None = None
    for source in sources:
        draft = source.draft(workload.loaded, default)
        default = default or draft
        arm = contender(workload, overridden(draft, request))
        arms.setdefault(arm.id, arm)
    return list(arms.values())


def contender(workload: Workload, draft: Draft) -> Arm:
    """A self-speculative arm whose id tells this draft from every other, in logs too."""
    arm_id = f"{SELF_SPECULATIVE}:{short_hash(draft.describe())[:8]}"
    return self_speculative_arm(workload, draft, arm_id)


def reference_arms(workload: Workload, main: Arm, *, uniform_and_random: bool) -> list[Arm]:
    """The A-A run, model.generate, the empty set, and uniform and random skipping of as many sub-layers."""
    assert main.draft is not None
    arms = [autoregressive_arm(workload, NULL), generate_arm(workload)]
    skip_set = main.draft.skip_set
    if workload.sampler.greedy and workload.loaded.dtype != torch.float32:
        # What verification alone does to the output: the yardstick for numerical ties.
        policy = main.draft.policy
        if policy.kind is PolicyKind.COST_AWARE:  # that would never draft at the full model's cost
            policy = DraftPolicy(max_draft_tokens=policy.max_draft_tokens)
        empty = Draft(SkipSet.empty(skip_set.num_layers), policy)
        arms.append(self_speculative_arm(workload, empty, EMPTY, EMPTY))
    if not uniform_and_random or skip_set.is_empty:
        return arms
    # Uniform and random sets leave the first attention in: it is untouchable in every model tried.
    counts = min(len(skip_set.attention), skip_set.num_layers - 1), len(skip_set.mlp)
    others = {
        "uniform": SkipSet.uniform(skip_set.num_layers, *counts),
        "random": SkipSet.random(skip_set.num_layers, *counts, seed=workload.options.seed),
    }
    for name, other in others.items():
        arms.append(self_speculative_arm(workload, replace(main.draft, skip_set=other), name, name))
    return arms


def _hashes(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.hash for prompt in prompts]

"""``selfspec-tune bench``: skip sets against what a user would pick instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from selfspec_tune.bench.contest import Contest
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.sources import Source, gather, model_options, prompt_options
from selfspec_tune.draft import Draft
from selfspec_tune.engine import autoregressive
from selfspec_tune.errors import PromptError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import (
    NULL,
    SELF_SPECULATIVE,
    Arm,
    autoregressive_arm,
    generate_arm,
    self_speculative_arm,
)
from selfspec_tune.measure.lossless import LosslessCheck, numeric_floor
from selfspec_tune.measure.pairs import draft_text
from selfspec_tune.measure.workload import WorkItem, Workload, open_workload
from selfspec_tune.prompts import Prompt, load_prompts
from selfspec_tune.provenance import collect
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, PromptOptions
from selfspec_tune.results import BenchResult, SkipConfig
from selfspec_tune.skip_set import SkipSet

_FLOOR_TOKENS = 36


def run_bench(request: BenchRequest, reporter: Reporter) -> BenchResult:
    """Measure every skip set of ``request`` against the baseline on prompts that no search of theirs read."""
    sources = gather(request)
    configs = [source.config for source in sources if source.config is not None]
    options = prompt_options(request, configs)
    prompts, in_sample = choose_prompts(request, options, configs)
    workload = open_workload(model_options(request, configs), options, reporter)
    contenders = _contenders(workload, sources)
    items = workload.items(prompts)
    contest = Contest(
        workload,
        make_check(workload, items[0]),
        items,
        contenders,
        _references(workload, contenders[0], request),
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
    asked = dict(request.prompt_overrides).get("num_prompts")
    read = frozenset(h for config in configs for h in config.prompt_hashes("calibration", "selection"))
    if request.allow_calibration:
        drawn = load_prompts(options.source, num_prompts=options.num_prompts, seed=options.seed)
        return list(drawn), any(prompt.hash in read for prompt in drawn)
    if asked is None:
        drawn = load_prompts(options.source, num_prompts=options.num_prompts, seed=options.seed)
        unread = [prompt for prompt in drawn if prompt.hash not in read]
        wanted = 1
    else:
        everything = load_prompts(options.source)
        pool = [prompt for prompt in everything if prompt.hash not in read]
        wanted = options.num_prompts
        unread = pool if len(pool) < wanted else _draw(options, read, wanted)
    if len(unread) < wanted:
        raise PromptError(
            f"{options.source} has {len(unread)} prompts that the search did not read; {wanted} were asked for. "
            "Lower --num-prompts, give other --prompts, or pass --allow-calibration (the result is then in-sample)."
        )
    return unread, False


def _draw(options: PromptOptions, read: frozenset[str], wanted: int) -> list[Prompt]:
    """The first ``wanted`` unread prompts in the seeded, task-stratified order."""
    everything = load_prompts(options.source)
    ordered = load_prompts(options.source, num_prompts=len(everything), seed=options.seed)
    return [prompt for prompt in ordered if prompt.hash not in read][:wanted]


def make_check(workload: Workload, item: WorkItem) -> LosslessCheck:
    """A lossless check whose numeric floor is measured on the answer to ``item``."""
    sampled = not workload.sampler.greedy
    limits = type(item.limits)(min(_FLOOR_TOKENS, item.limits.max_new_tokens), item.limits.eos_token_ids)
    answer = autoregressive(workload.runner, item.tokens, limits, workload.sampler).tokens
    floor = numeric_floor(workload.runner, item, answer, dtype=workload.loaded.dtype)
    return LosslessCheck(workload.runner, floor, sampled=sampled)


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


def _contenders(workload: Workload, sources: Sequence[Source]) -> list[Arm]:
    arms: dict[str, Arm] = {}
    default: Draft | None = None
    for source in sources:
        draft = source.draft(workload.loaded, default)
        default = default or draft
        arm = contender(workload, draft)
        arms.setdefault(arm.id, arm)
    return list(arms.values())


def contender(workload: Workload, draft: Draft) -> Arm:
    """A self-speculative arm whose id tells this draft from every other, in logs too."""
    arm_id = f"{SELF_SPECULATIVE}:{short_hash(draft_text(draft))[:8]}"
    return self_speculative_arm(workload, draft, arm_id)


def _references(workload: Workload, main: Arm, request: BenchRequest) -> list[Arm]:
    """The A-A run, model.generate, and uniform and random skipping of as many sub-layers."""
    if request.reference_prompts < 1:
        return []
    arms = [autoregressive_arm(workload, NULL), generate_arm(workload)]
    if not request.uniform_and_random or main.draft is None or main.draft.skip_set.is_empty:
        return arms
    skip_set = main.draft.skip_set
    counts = len(skip_set.attention), len(skip_set.mlp)
    others = {
        "uniform": SkipSet.uniform(skip_set.num_layers, *counts),
        "random": SkipSet.random(skip_set.num_layers, *counts, seed=workload.options.seed),
    }
    for name, other in others.items():
        arms.append(self_speculative_arm(workload, replace(main.draft, skip_set=other), name, name))
    return arms


def _hashes(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.hash for prompt in prompts]

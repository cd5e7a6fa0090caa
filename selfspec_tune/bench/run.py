"""``selfspec-tune bench``: skip sets against what a user would pick instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from selfspec_tune.bench.contest import Contest, shortened
from selfspec_tune.bench.log import commits_of, opened, runner_of, widened_of
from selfspec_tune.bench.measurement import measurement
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.parts import part_arms
from selfspec_tune.bench.rivals import System, rival_arms, system_of
from selfspec_tune.bench.sources import Source, as_begun, gather, model_options, overridden, prompt_options
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.engine import autoregressive, describe_numerics
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
from selfspec_tune.measure.rivals import guarded
from selfspec_tune.measure.workload import WorkItem, Workload, load_some, open_workload
from selfspec_tune.prompts import Prompt, draw_prompts, load_prompts
from selfspec_tune.provenance import collect
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, BenchRequest, PromptOptions
from selfspec_tune.results import BenchResult, SkipConfig
from selfspec_tune.skip_set import SkipSet

_FLOOR_ITEMS = 4
_FLOOR_TOKENS = 24


@dataclass(frozen=True, slots=True)
class BenchSetting:
    """What a request comes to: prompts that may be measured on, a loaded model, the arms.

    ``contenders`` are the skip sets, ``parts`` those of the first one's draft.
    """

    workload: Workload
    prompts: list[Prompt]
    in_sample: bool
    contenders: list[Arm]
    parts: list[Arm]
    rivals: list[Arm]

    @property
    def split(self) -> str:
        """Which prompts a result is about."""
        return "in_sample" if self.in_sample else "test"

    def provenance(self, check: LosslessCheck, **extra: Any) -> dict[str, Any]:
        """`bench_provenance` with the prompts' options and the hash of every prompt that is measured."""
        record = {**self.workload.options.to_dict(), "test": [prompt.hash for prompt in self.prompts]}
        return bench_provenance(self.workload, check, prompts=record, **extra)


def run_bench(request: BenchRequest, reporter: Reporter, workload: Workload | None = None) -> BenchResult:
    """Measure every skip set of ``request`` against the baseline on prompts that no search of theirs read.

    ``workload``: one that is open already, whose model and runner then serve.
    """
    setting = open_bench(request, reporter, workload)
    workload, items = setting.workload, setting.workload.items(setting.prompts)
    competing = [*setting.contenders, *setting.parts, *setting.rivals]
    references = reference_arms(workload, setting.contenders[0], uniform_and_random=request.uniform_and_random)
    with opened(request.log, measurement(workload, {"": items}, request), reporter, fresh=request.fresh) as log:
        contest = Contest(
            workload,
            make_check(workload, items, log.numeric_floor() if log else None),
            items,
            competing,
            [arm for arm in references if arm.id not in {arm.id for arm in competing}],
            num_reference_items=min(request.reference_prompts, len(items)),
            rounds=request.rounds,
            log=log.path if log else None,
            session=log.session if log else None,
        )
        if log:
            log.begin([contest], setting.provenance(contest.check), reporter)
        reporter.stage("bench", f"{len(items)} prompts, {len(contest.arms) + 1} methods")
        runs = contest.run(reporter)
    return bench_result(
        workload,
        contest.arms,
        runs,
        unavailable=contest.unavailable,
        split=setting.split,
        in_sample=setting.in_sample,
        provenance=log.provenance(runs) if log else setting.provenance(contest.check),
    )


def open_bench(request: BenchRequest, reporter: Reporter, workload: Workload | None = None) -> BenchSetting:
    """Read skip sets and prompts first (cheap, may be wrong), then load the model, unless a ``workload`` is open."""
    sources = gather(request)
    configs = [source.config for source in sources if source.config is not None]
    for config in configs:
        if config.objective == "standalone":
            reporter.notice(
                f"{config.skip_set()} was searched as a draft with a cache of its own; here it shares the model's. "
                "`selfspec-tune export` makes the draft that it was searched as."
            )
    options = prompt_options(request, configs)
    prompts, in_sample = choose_prompts(request, options, configs, reporter.notice)
    model = as_begun(model_options(request, configs), {} if request.fresh else commits_of(request.log))
    if workload is None:
        begun_with = None if request.fresh else runner_of(request.log)
        workload = open_workload(model, options, reporter, begun_with)
    else:
        workload = workload.reopened(options)
    if workload.theirs is not None and not request.fresh:
        workload.theirs.is_widened.update(widened_of(request.log))
    prompts = workload.fitting(prompts, reporter.notice)
    contenders = contender_arms(workload, sources, request)
    parts = part_arms(workload, contenders) if request.parts else []
    rivals = rival_arms(workload, contenders[0], request, model, reporter) if request.rivals else []
    return BenchSetting(workload, prompts, in_sample, contenders, parts, rivals)


def choose_prompts(
    request: BenchRequest,
    options: PromptOptions,
    configs: Sequence[SkipConfig],
    notice: Callable[[str], None] = lambda _: None,
) -> tuple[list[Prompt], bool]:
    """Prompts to bench on, and whether a search had read any of them.

    With the options of a study these are the prompts of its test split; with
    ``num_prompts`` given, as many unread ones of the source. ``notice`` is told of rows that are
    no prompts. Raises `PromptError` where too few remain.
    """
    read = frozenset(h for config in configs for h in config.read_prompts)
    is_asked = "num_prompts" in dict(request.prompt_overrides)
    if request.allow_calibration:
        drawn = load_some(options, notice)
        return list(drawn), any(prompt.hash in read for prompt in drawn)
    if is_asked and options.num_prompts is not None:
        wanted = options.num_prompts
        in_order = load_prompts(options.source, tasks=options.tasks, notice=notice)
        ordered = draw_prompts(in_order, len(in_order), seed=options.seed)
        unread = [prompt for prompt in ordered if prompt.hash not in read][:wanted]
    else:
        wanted = 1
        # Another source than the study's may hold fewer prompts than the study drew.
        everything = load_prompts(options.source, tasks=options.tasks, notice=notice)
        most = min(len(everything), options.num_prompts or DEFAULT_NUM_PROMPTS)
        unread = [p for p in draw_prompts(everything, most, seed=options.seed) if p.hash not in read]
    if len(unread) < wanted:
        raise PromptError(
            f"{options.source} has {len(unread)} prompts that the search did not read; {wanted} were asked for. "
            "Lower --num-prompts, give other --prompts, or pass --allow-calibration (the result is then in-sample)."
        )
    return unread, False


def make_check(workload: Workload, items: Sequence[WorkItem], floor: float | None = None) -> LosslessCheck:
    """A lossless check whose numeric floor is ``floor``, else the largest found on the answers to a few items."""
    runner, dtype = workload.runner, workload.loaded.dtype
    if dtype == torch.float32 or not workload.sampler.greedy:
        return LosslessCheck(runner, FLOAT32_FLOOR, sampled=not workload.sampler.greedy)
    if floor is not None:
        return LosslessCheck(runner, floor, dtype=dtype)
    floors = []
    for item in items[:_FLOOR_ITEMS]:
        short = shortened(item, _FLOOR_TOKENS)
        answer = autoregressive(runner, short.tokens, short.limits, workload.sampler).tokens
        floors.append(numeric_floor(runner, item, answer))
    return LosslessCheck(runner, float(torch.tensor(floors).max()), dtype=dtype)


def bench_provenance(workload: Workload, check: LosslessCheck | None, **extra: Any) -> dict[str, Any]:
    """Where a measurement comes from: program, machine, model, threads, prompts.

    ``check``: None before one is made. ``generation_config``: what the checkpoint asks for, which was not followed.
    """
    loaded = workload.loaded
    if loaded.generation_settings:
        extra = {"generation_config": loaded.generation_settings, **extra}
    return collect(
        model=loaded.describe(),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        gpu=torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        seed=workload.options.seed,
        runner=workload.runner.name,
        numerics=describe_numerics(),
        numeric_floor=None if check is None else check.floor,
        **extra,
    )


def contender_arms(workload: Workload, sources: Sequence[Source], request: BenchRequest) -> list[Arm]:
    """An arm for every distinct draft of the sources, the one that the bench is about first.

    With rivals a set in another system's form drafts by that system's policy and under its
    name. Should there be no other, the first such set is what the bench is about.
    """
    arms: dict[str, Arm] = {}
    default: Draft | None = None
    for source in sources:
        draft = source.draft(workload.loaded, default)
        system = system_of(source.dialect(workload.loaded.num_layers)) if request.rivals else None
        if system is None:
            default = default or draft
            arm = contender(workload, overridden(draft, request))
        else:
            arm = system_arm(workload, draft.skip_set, system)
        arms.setdefault(arm.id, arm)
    found = list(arms.values())
    if all(arm.name != SELF_SPECULATIVE for arm in found):
        found[0] = replace(found[0], name=SELF_SPECULATIVE)
    return sorted(found, key=lambda arm: arm.name != SELF_SPECULATIVE)


def system_arm(workload: Workload, skip_set: SkipSet, system: System) -> Arm:
    """A skip set under the policy of the ``system`` that it comes from."""
    draft = Draft(skip_set, system.policy)
    arm = self_speculative_arm(workload, draft, f"{system.name}:{short_hash(draft.describe())[:8]}", system.name)
    return replace(arm, description=system.description)


def contender(workload: Workload, draft: Draft) -> Arm:
    """A self-speculative arm whose id tells this draft from every other, in logs too."""
    return self_speculative_arm(workload, draft, contender_id(draft))


def contender_id(draft: Draft) -> str:
    """The id of the arm that `contender` makes of a draft."""
    return f"{SELF_SPECULATIVE}:{short_hash(draft.describe())[:8]}"


def reference_arms(workload: Workload, main: Arm, *, uniform_and_random: bool) -> list[Arm]:
    """The A-A run, model.generate, the empty set, and uniform and random skipping of as many sub-layers."""
    assert main.draft is not None
    arms = [autoregressive_arm(workload, NULL), guarded(generate_arm(workload))]
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

"""``selfspec-tune bench``: skip sets against what a user would pick instead; from Python too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfspec_tune.arguments import bench_request
from selfspec_tune.bench.competitors import System, part_arms, rival_arms, system_of
from selfspec_tune.checks import checked_arguments, path_or_none, text_or_none
from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import SELF_SPECULATIVE, Arm, contender_arm, reference_arms, self_speculative_arm
from selfspec_tune.measure.bench_result import bench_result
from selfspec_tune.measure.contenders import Contender, as_begun, gather, model_options, overridden, prompt_options
from selfspec_tune.measure.contest import Contest, run_together
from selfspec_tune.measure.lossless import LosslessCheck, make_check
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.measure.run_log import commits_of, measurement, measurement_provenance, opened, runner_of, widened_of
from selfspec_tune.measure.workload import Workload, load_some, open_workload
from selfspec_tune.prompts import Prompt, draw_prompts, load_prompts, those_unread
from selfspec_tune.reporting import Reporter, SilentReporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, BenchRequest, PromptOptions, log_beside
from selfspec_tune.results import BenchResult, SkipConfig


@dataclass(frozen=True, slots=True)
class BenchSetup:
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
        """`measurement_provenance` with the prompts' options and the hash of every prompt that is measured."""
        record = {**self.workload.options.to_dict(), "test": [prompt.hash for prompt in self.prompts]}
        return measurement_provenance(self.workload, check, prompts=record, **extra)


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
            plain_limit=PlainLimit(workload.loaded, workload.runner, reporter.notice),
        )
        if log:
            log.begin([contest], setting.provenance(contest.check), reporter)
        reporter.stage("bench", f"{len(items)} prompts, {len(contest.arms) + 1} methods")
        (runs,) = run_together([contest], reporter)
    return bench_result(
        workload,
        contest.arms,
        runs,
        unavailable=contest.unavailable,
        split=setting.split,
        in_sample=setting.in_sample,
        provenance=log.provenance(runs) if log else setting.provenance(contest.check),
    )


def open_bench(request: BenchRequest, reporter: Reporter, workload: Workload | None = None) -> BenchSetup:
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
    return BenchSetup(workload, prompts, in_sample, contenders, parts, rivals)


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
    if request.allow_calibration:
        drawn = load_some(options, notice)
        return list(drawn), any(prompt.hash in read for prompt in drawn)
    asked = options.num_prompts if "num_prompts" in dict(request.prompt_overrides) else None
    everything = load_prompts(options.source, tasks=options.tasks, notice=notice)
    # Another source than the study's may hold fewer prompts than the study drew.
    usual = min(len(everything), options.num_prompts or DEFAULT_NUM_PROMPTS)
    unread = those_unread(
        draw_prompts(everything, len(everything) if asked else usual, seed=options.seed),
        read,
        least=asked or 1,
        source=options.source,
        ways_out="Lower `num_prompts`, give other `prompts`, or pass `allow_calibration` (the result is then "
        "in-sample).",
    )
    return unread[:asked], False


def contender_arms(workload: Workload, sources: Sequence[Contender], request: BenchRequest) -> list[Arm]:
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
            arm = contender_arm(workload, overridden(draft, request))
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


@checked_arguments
def bench(
    *sources: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    prompts: str | os.PathLike[str] | None = None,
    rivals: bool = False,
    parts: bool = False,
    out: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> BenchResult:
    """Measure skip sets against plain decoding, in interleaved pairs, on prompts that no search of theirs read.

    Args:
        sources: what `search` returned, studies, skip.json files, other projects' files, or texts such as
            ``attn 2-9 · mlp 3,5``; none: the newest study under ``studies``.
        model: alias, hub id, directory or GGUF file; None: the one that the first source names.
        prompts: builtin, humaneval, a file or folder, or a preset such as gsm8k; None: the first source's.
        rivals: measure what a user would pick instead, too.
        parts: measure what the first draft is made of, too.
        out: write the result there, and raw runs beside it as they come, from which the same call resumes.
        reporter: is told of what happens; None: nobody is.
        options: any other field of `BenchRequest`, and what of the model, the prompts and the drafts is otherwise.

    Raises:
        UsageError: an option is not known or means nothing, or too few unread prompts are left.
        SelfSpecError: the model cannot be had or cannot run here, or a result cannot be written.
    """
    if {"log", "skip_sets"} & options.keys():
        raise UsageError(
            "Skip sets are the first arguments of bench(), and raw runs are kept beside `out`: give these."
        )
    file = path_or_none("out", out)
    request = bench_request(
        skip_sets=tuple(map(os.fspath, sources)),
        model=text_or_none(model),
        prompts=text_or_none(prompts),
        rivals=rivals,
        parts=parts,
        log=None if file is None else log_beside(file),
        **options,
    )
    result = run_bench(request, reporter or SilentReporter())
    if file is not None:
        result.save(file)
    return result

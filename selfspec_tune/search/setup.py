"""What a search works on: prompts split three ways and rendered, and its resolved configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from selfspec_tune.draft import LONGEST_SEARCHED, Draft, DraftPrecision, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.errors import PromptError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.workload import WorkItem, Workload, load_some, open_workload, shortened
from selfspec_tune.models.origin import find_origin
from selfspec_tune.prompts import (
    Prompt,
    Splits,
    Template,
    default_split_sizes,
    split_each_task,
    split_prompts,
    tokens_hash,
)
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DraftOptions, Objective, PromptOptions, SearchRequest
from selfspec_tune.results import StudyConfig
from selfspec_tune.search.budget import Schedule
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.calibration import sources_alone
from selfspec_tune.search.starts import Start, fit_start, read_start
from selfspec_tune.search.strategies import strategy_for
from selfspec_tune.search.study import StudyFolder, template_hash, vocabulary_hash

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class SearchSetup:
    """A request made concrete. ``num_prompts`` were drawn; of those left for the test, read ones are in no split."""

    request: SearchRequest
    workload: Workload
    space: SearchSpace
    splits: Splits
    calibration: list[WorkItem]
    selection: list[WorkItem]
    test: list[WorkItem]
    num_prompts: int
    starts: tuple[Start, ...] = ()

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt length over all splits."""
        return mean(len(item.tokens) for item in (*self.calibration, *self.selection, *self.test))

    def config(self) -> StudyConfig:
        """The resolved configuration, as study.toml keeps it."""
        loaded, request = self.workload.loaded, self.request
        prompts = {**request.prompts.to_dict(), "num_prompts": self.num_prompts}
        return StudyConfig(
            model=loaded.id,
            model_fingerprint=loaded.fingerprint,
            model_revision=loaded.revision,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            runner=self.workload.runner.name,
            prompts=prompts.pop("source"),
            trials=request.trials,
            timeout_seconds=request.timeout_seconds,
            strategy=request.strategy.value,
            start_from={start.file.name: start.file.content_hash for start in self.starts} or None,
            draft=_draft_record(request.draft, self.space),
            draft_defaults=", ".join([f"up to {LONGEST_SEARCHED} tokens", *map(str, self.space.base.sources)]),
            prompts_hash=short_hash(" ".join(hash_ for hashes in self.splits.hashes().values() for hash_ in hashes)),
            tokenizer=vocabulary_hash(loaded.tokenizer),
            chat_template=template_hash(loaded.tokenizer, Template(request.prompts.template)),
            eos_token_ids=sorted(loaded.eos_token_ids),
            prompt_tokens=tokens_hash(*(item.tokens for item in (*self.calibration, *self.selection, *self.test))),
            **prompts,
        )

    def fitted(self, schedule: Schedule, *, uses_copies: bool = True) -> SearchSetup:
        """The same by ``schedule``: fewer calibration prompts, shorter answers everywhere.

        Without ``uses_copies`` no draft is searched for that computes with low-precision copies.
        """
        longest = schedule.max_new_tokens
        prompts = replace(self.request.prompts, max_new_tokens=longest)
        return replace(
            self,
            request=replace(self.request, prompts=prompts),
            space=self.space if uses_copies else self.space.without_copies(),
            calibration=[shortened(item, longest) for item in self.calibration[: schedule.num_calibration]],
            selection=[shortened(item, longest) for item in self.selection],
            test=[shortened(item, longest) for item in self.test],
        )

    def first_draft(self) -> Draft:
        """A draft that needs no search: nothing skipped at the request's low precision, else the context alone."""
        base = self.space.base
        if base.precision.is_same:
            return sources_alone(base)
        return base.by_model

    def prompt_record(self) -> dict[str, Any]:
        """``provenance.prompts`` of skip.json: the source, its options and every hash by split.

        ``earlier``: what the searches that this one started from have read besides.
        """
        hashes = self.splits.hashes()
        before = {hash_ for start in self.starts for hash_ in start.file.read_prompts}
        earlier = sorted(before.difference(hashes["calibration"], hashes["selection"]))
        record = {**self.request.prompts.to_dict(), "num_prompts": self.num_prompts, **hashes}
        return {**record, "earlier": earlier} if earlier else record


def open_setup(request: SearchRequest, reporter: Reporter, workload: Workload | None = None) -> SearchSetup:
    """Read the starts, read and split the prompts first (cheap, may be wrong), then load the model.

    Prompts that do not fit its context are left out of all splits, with a notice.
    ``workload``: one that is open already, whose model and runner then serve.
    """
    request = replace(request, draft=strategy_for(request.strategy).options(request.draft))
    begun = StudyFolder(request.out).begun
    request = as_begun(request, begun)
    options = request.prompts
    files = [read_start(name) for name in dict.fromkeys(request.start_from)]
    prompts = load_some(options, reporter.notice)
    read = {hash_ for file in files for hash_ in file.read_prompts}
    splits = _split(prompts, options, read)
    if workload is None:
        workload = open_workload(request.model, options, reporter, None if begun is None else begun.runner)
    else:
        workload = workload.reopened(options)
    fitting = workload.fitting(prompts, reporter.notice)
    if len(fitting) < len(prompts):
        splits = _split(fitting, options, read)
    left_out = len(fitting) - sum(map(len, splits.hashes().values()))
    if left_out:
        test = left_out + len(splits.test)
        reporter.notice(f"{left_out} of {test} test prompts are left out: a start's search has read them")
    if request.draft.objective is Objective.STANDALONE:
        workload = workload.standing_alone()
    space = _open_space(workload, request.draft)
    return SearchSetup(
        request,
        workload,
        space,
        splits,
        workload.items(splits.calibration),
        workload.items(splits.selection),
        workload.items(splits.test),
        len(prompts),
        tuple(fit_start(file, workload.loaded, space, request.draft.policy_kinds) for file in files),
    )


def _split(prompts: Sequence[Prompt], options: PromptOptions, read: Collection[str]) -> Splits:
    """The splits of the default sizes, of each task where tasks were asked for. Raises `PromptError` for too few."""
    calibration, selection, test = default_split_sizes(len(prompts))
    if not calibration:
        raise PromptError(
            f"A search needs at least 4 prompts (to calibrate on, to select on and to test on); {options.source} gave "
            f"{len(prompts)}. Raise `num_prompts` or give a larger set; 64 and more are better."
        )
    if options.tasks:
        return split_each_task(prompts, options.tasks, seed=options.seed, read=read)
    return split_prompts(prompts, seed=options.seed, calibration=calibration, selection=selection, test=test, read=read)


def as_begun(request: SearchRequest, begun: StudyConfig | None) -> SearchRequest:
    """The request for the commit and with the date that a study was begun with, where it does not name others."""
    if begun is None:
        return request
    model, prompts = request.model, request.prompts
    is_pinned = model.revision is None and begun.model_revision is not None
    if is_pinned and find_origin(model.name).id == begun.model:  # of another model `settle` says that it is another
        model = replace(model, revision=begun.model_revision)
    if begun.template_date is not None:
        prompts = replace(prompts, template_date=begun.template_date)
    return replace(request, model=model, prompts=prompts)


def tell_starts(starts: Sequence[Start], reporter: Reporter) -> None:
    """What became of each start, as notices."""
    for start in starts:
        reporter.notice(f"start {start.file.name}: {start.about}")


def _open_space(workload: Workload, options: DraftOptions) -> SearchSpace:
    """The drafts that ``options`` allow here; bounds the memory of low-precision copies and makes the base's.

    So what no draft could use later is refused now.
    """
    num_layers, runner = workload.loaded.num_layers, workload.runner
    experts = int(options.experts) if options.experts not in (AUTO, "same") else None
    base = Draft(SkipSet.empty(num_layers), sources=options.sources, experts=experts)
    if not isinstance(runner, FastRunner):
        precision = "same" if options.precision == AUTO else options.precision
        base = replace(base, precision=DraftPrecision.parse(precision, num_layers))
        runner.set_draft(base)
        return SearchSpace.of_skips(base)
    parameters = workload.loaded.model.parameters()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    runner.extra_memory_bytes = allowed = options.extra_memory.bytes(weights)
    if options.precision == AUTO:
        space = _joint_space(runner, base, allowed)
    else:
        space = SearchSpace.of_skips(replace(base, precision=DraftPrecision.parse(options.precision, num_layers)))
    runner.set_draft(space.base)
    if options.experts == AUTO:
        space = replace(space, experts=(None, *range(workload.loaded.experts_per_token - 1, 0, -1)))
    return replace(space, copy_bytes=runner.copy_bytes, allowed_bytes=allowed)


def _joint_space(runner: FastRunner, base: Draft, allowed_bytes: int) -> SearchSpace:
    """Every precision that the runner has kernels for, begun from the lowest whose copies of all layers fit."""
    num_layers = base.skip_set.num_layers
    kernels = [p for p in (Precision.INT4, Precision.INT8) if runner.precision_refusal(p) is None]
    for lowest in kernels:
        uniform = replace(base, precision=DraftPrecision.uniform(num_layers, lowest, lowest))
        if runner.copy_bytes(uniform) <= allowed_bytes:
            choices = (lowest, *(p for p in kernels if p is not lowest), Precision.SAME)
            return SearchSpace(uniform, (choices,) * (2 * num_layers), choices, experts=(base.experts,))
    return SearchSpace.of_skips(base)


def _draft_record(options: DraftOptions, space: SearchSpace) -> dict[str, Any]:
    """The draft options for study.toml, with the precision that drafts begin from."""
    record = {
        "policy": options.policy,
        "max_draft_tokens": options.max_draft_tokens,
        "exit_threshold": options.exit_threshold,
        "vocabulary": options.vocabulary,
        **options.source_choices,
        "precision": options.precision,
        "base_precision": str(space.base.precision),
        "extra_memory": str(options.extra_memory),
        "objective": None if options.objective is Objective.SHARED else options.objective.value,
        "experts": None if space.experts == (None,) else options.experts,
    }
    return {key: value for key, value in record.items() if value is not None}

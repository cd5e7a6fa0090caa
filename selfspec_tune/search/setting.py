"""What a search works on: prompts split three ways and rendered, and its resolved configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from selfspec_tune.draft import Draft, DraftPrecision, NgramLookup, Precision
from selfspec_tune.engine import Runner
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.errors import PromptError
from selfspec_tune.files import short_hash
from selfspec_tune.measure.workload import WorkItem, Workload, load_some, open_workload
from selfspec_tune.prompts import Splits, default_split_sizes, split_prompts
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DraftOptions, SearchRequest
from selfspec_tune.results import StudyConfig
from selfspec_tune.skip_set import SkipSet

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """A request made concrete."""

    request: SearchRequest
    workload: Workload
    splits: Splits
    calibration: list[WorkItem]
    selection: list[WorkItem]
    test: list[WorkItem]

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt length over all splits."""
        return mean(len(item.tokens) for item in (*self.calibration, *self.selection, *self.test))

    def config(self) -> StudyConfig:
        """The resolved configuration, as study.toml keeps it."""
        loaded, request = self.workload.loaded, self.request
        prompts = {**asdict(request.prompts), "num_prompts": self.num_prompts}
        return StudyConfig(
            model=loaded.id,
            model_fingerprint=loaded.fingerprint,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            runner=self.workload.runner.name,
            prompts=prompts.pop("source"),
            trials=request.trials,
            timeout_seconds=request.timeout_seconds,
            draft=_draft_record(request.draft),
            prompts_hash=short_hash(" ".join(hash_ for hashes in self.splits.hashes().values() for hash_ in hashes)),
            **prompts,
        )

    def first_draft(self) -> Draft | None:
        """A draft that needs no search: nothing skipped, kept sub-layers at the request's low precision, if any."""
        num_layers = self.workload.loaded.num_layers
        precision = draft_precision(self.request.draft, num_layers)
        return None if precision.is_same else Draft(SkipSet.empty(num_layers), precision=precision)

    def prompt_record(self) -> dict[str, Any]:
        """``provenance.prompts`` of skip.json: the source, its options and every hash by split."""
        return {**asdict(self.request.prompts), "num_prompts": self.num_prompts, **self.splits.hashes()}

    @property
    def num_prompts(self) -> int:
        """Prompts in all three splits."""
        return sum(len(hashes) for hashes in self.splits.hashes().values())


def open_setting(request: SearchRequest, reporter: Reporter) -> Setting:
    """Read and split the prompts first (cheap, may be wrong), then load the model."""
    options = request.prompts
    prompts = load_some(options)
    calibration, selection, test = default_split_sizes(len(prompts))
    if not calibration:
        raise PromptError(
            f"A search needs at least 4 prompts (to calibrate on, to select on and to test on); {options.source} gave "
            f"{len(prompts)}. Raise --num-prompts or give a larger set; 64 and more are better."
        )
    splits = split_prompts(prompts, seed=options.seed, calibration=calibration, selection=selection, test=test)
    workload = open_workload(request.model, options, reporter)
    return Setting(
        replace(request, draft=_admitted(workload, request.draft)),
        workload,
        splits,
        workload.items(splits.calibration),
        workload.items(splits.selection),
        workload.items(splits.test),
    )


def _admitted(workload: Workload, options: DraftOptions) -> DraftOptions:
    """The options with a precision for ``auto``; bounds the memory of low-precision copies and makes them.

    So what no draft could use later is refused now.
    """
    num_layers, runner = workload.loaded.num_layers, workload.runner
    allowed = 0
    if isinstance(runner, FastRunner):
        parameters = workload.loaded.model.parameters()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        runner.extra_memory_bytes = allowed = options.extra_memory.bytes(weights)
    if options.precision == AUTO:
        options = replace(options, precision=str(_lowest_precision(runner, num_layers, allowed)))
    runner.set_draft(Draft(SkipSet.empty(num_layers), precision=draft_precision(options, num_layers)))
    return options


def _lowest_precision(runner: Runner, num_layers: int, allowed_bytes: int) -> DraftPrecision:
    """The lowest precision of all sub-layers and the head that the runner has kernels and memory for."""
    if isinstance(runner, FastRunner):
        for precision in (Precision.INT4, Precision.INT8):
            uniform = DraftPrecision.uniform(num_layers, precision, precision)
            needed = runner.copy_bytes(Draft(SkipSet.empty(num_layers), precision=uniform))
            if runner.precision_refusal(precision) is None and needed <= allowed_bytes:
                return uniform
    return DraftPrecision()


def draft_precision(options: DraftOptions, num_layers: int) -> DraftPrecision:
    """The precision that every draft of a search keeps. Raises `UsageError` where it names layers too many."""
    return DraftPrecision.parse(options.precision, num_layers)


def draft_lookup(options: DraftOptions) -> NgramLookup | None:
    """The lookup that every draft of a search begins with."""
    return NgramLookup() if options.ngram else None


def _draft_record(options: DraftOptions) -> dict[str, Any]:
    """The draft options for study.toml."""
    record = {
        "policy": options.policy,
        "max_draft_tokens": options.max_draft_tokens,
        "exit_threshold": options.exit_threshold,
        "vocabulary": options.vocabulary,
        "ngram": options.ngram,
        "precision": options.precision,
        "extra_memory": str(options.extra_memory),
    }
    return {key: value for key, value in record.items() if value is not None}

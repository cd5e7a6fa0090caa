"""A loaded model examined: its steps, timed beside read kernels, and what they say."""

from __future__ import annotations

from statistics import median

from selfspec_tune.doctor.findings import DRAFT, check_decode, context_rows, find_out
from selfspec_tune.doctor.machine import check_native
from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, self_speculative
from selfspec_tune.engine.cost_design import CostPlan
from selfspec_tune.engine.cost_fit import CONTEXTS, fitted, time_contexts
from selfspec_tune.engine.timing import Step, draft_step
from selfspec_tune.errors import UsageError
from selfspec_tune.measure.contenders import gather
from selfspec_tune.measure.roofline import largest_matrix, read_kernels
from selfspec_tune.measure.traffic import traffic_of
from selfspec_tune.measure.workload import Workload, open_workload
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, DoctorRequest, ModelOptions, PromptOptions
from selfspec_tune.results import ModelInfo
from selfspec_tune.results.diagnosis import Diagnosis, DraftTiming, RoundOverhead

_SECONDS = 120.0  # for all steps at all contexts
_MOST_ROUNDS = 9
_GENERATIONS = 3
_PROMPT_TOKENS, _NEW_TOKENS = 64, 48
_REFERENCE_NOTE = (
    "The reference runner runs a skipped sub-layer all the same and throws its output away: a draft step saves no "
    "time and cannot be split into attention, MLP and head. Only whole steps are shown."
)
_EXPERTS_NOTE = (
    "A mixture of experts reads the experts that its tokens go to; the bytes here are what it reads in the mean where "
    "every choice is as likely as any other. Real texts choose less evenly, and read fewer: no share of the limit is "
    "told of verification."
)
_ALL_EXPERTS_NOTE = (
    "A mixture of experts reads the chosen experts only; the bytes here count all of them: an upper bound."
)


def examine(found: Diagnosis, request: DoctorRequest, model: ModelOptions, reporter: Reporter) -> Diagnosis:
    """``found`` with everything that only a loaded model tells."""
    workload = open_workload(model, PromptOptions(max_new_tokens=2), reporter)  # it decodes no prompts
    lengths = _contexts(request, workload.loaded.context_length)
    draft, source = _draft(request, workload)
    tokens = workload.typical_tokens(max(*lengths, _PROMPT_TOKENS))
    examination = _Examination(workload, draft, source, tokens)
    reporter.stage("steps", f"beside read kernels, after {', '.join(map(str, lengths))} tokens")
    return examination.run(found, lengths, insist=bool(request.contexts), reporter=reporter)


class _Examination:
    """One model with one draft."""

    def __init__(self, workload: Workload, draft: Draft, source: str, tokens: list[int]) -> None:
        loaded, runner = workload.loaded, workload.runner
        self._workload = workload
        self._draft = draft
        self._source = source
        self._tokens = tokens
        self._can_split = runner.name != "reference"
        self._traffic = traffic_of(loaded)
        self._kernels = read_kernels(loaded.device, loaded.dtype, largest_matrix(loaded), runner)
        self._sizes = {kernel.name: kernel.run() for kernel in self._kernels}

    def run(self, found: Diagnosis, lengths: list[int], *, insist: bool, reporter: Reporter) -> Diagnosis:
        """Time everything, then say what it means."""
        runner, plan = self._workload.runner, self._plan(lengths, insist=insist)
        timings = time_contexts(runner, self._tokens, plan)
        costs = fitted(runner, timings, plan) if self._can_split else None
        rows = [context_rows(timing, self._kernels, self._sizes, self._traffic, self._draft) for timing in timings]
        drafting = DraftTiming(skip_set=str(self._draft.skip_set), policy=self._draft.to_dict(), source=self._source)
        overhead = None
        if costs is not None:
            step = {"predicted_step": costs.draft_step(self._draft), "measured_step": median(timings[0].others[DRAFT])}
            drafting = drafting.model_copy(update=step)
            reporter.stage("rounds", "short self-speculative generations")
            overhead = self._overhead(costs.steps(self._draft, _PROMPT_TOKENS + _NEW_TOKENS / 2))
        longest = max(timing.length for timing in timings)
        return found.model_copy(
            update={
                "checks": [*found.checks, *check_native(), *check_decode(rows[0], runner.name)],
                "model": ModelInfo.model_validate(self._workload.loaded.describe()),
                "runner": runner.name,
                "draft": drafting,
                "contexts": rows,
                "left_out": [length for length in lengths[1:] if length > longest and len(timings) < len(lengths)],
                "overhead": overhead,
                "cost_model": costs.to_dict() if costs is not None else None,
                "findings": find_out(rows[0], drafting, overhead, costs.residual if costs is not None else None),
                "notes": self._notes(),
            }
        )

    def _plan(self, lengths: list[int], *, insist: bool) -> CostPlan:
        runner = self._workload.runner
        beside: dict[str, Step] = {kernel.name: kernel.step for kernel in self._kernels}
        if self._can_split:
            beside[DRAFT] = draft_step(runner, self._tokens, self._draft)
        return CostPlan(
            self._workload.loaded.context_length,
            home=lengths[0],
            lengths=tuple(lengths[1:]),
            insist=insist,
            vocabularies=tuple(dict.fromkeys((self._draft.vocabulary, None))),
            precisions=tuple(
                DraftPrecision.uniform(runner.num_layers, low, low) for low in (Precision.INT8, Precision.INT4)
            ),
            classes=self._workload.cost_classes,
            experts=self._draft.experts,
            others=beside,
            seconds=_SECONDS,
            most_rounds=_MOST_ROUNDS,
        )

    def _overhead(self, steps: StepCosts) -> RoundOverhead:
        """Short real generations: what passes outside forward passes."""
        workload = self._workload
        new_tokens = max(2, min(_NEW_TOKENS, workload.loaded.context_length // 2))
        prompt = self._tokens[: max(1, min(_PROMPT_TOKENS, workload.loaded.context_length - new_tokens))]
        limits = Limits(new_tokens)  # no token ends it
        runs = [
            self_speculative(workload.runner, prompt, limits, workload.sampler, self._draft, steps)
            for _ in range(_GENERATIONS + 1)
        ][1:]  # the first warms up
        alone = [steps.seconds(run.rounds) for run in runs]
        return RoundOverhead(
            generations=len(runs),
            rounds=sum(len(run.rounds) for run in runs),
            share=median(1 - (run.draft_seconds + run.verify_seconds) / run.decode_seconds for run in runs),
            over_steps=median(run.decode_seconds / seconds for run, seconds in zip(runs, alone, strict=True)),
        )

    def _notes(self) -> list[str]:
        notes = [] if self._can_split else [_REFERENCE_NOTE]
        if self._traffic.has_experts:
            notes.append(_ALL_EXPERTS_NOTE if self._traffic.counts_all else _EXPERTS_NOTE)
        return notes


def _contexts(request: DoctorRequest, longest: int) -> list[int]:
    """The lengths asked for, else those of the cost model that the model has room for."""
    too_long = [length for length in request.contexts if length > longest]
    if too_long:
        raise UsageError(
            f"`contexts` {too_long[0]}: the model's context has {longest} positions. Give lengths up to {longest}."
        )
    return list(request.contexts) or [length for length in CONTEXTS if length <= longest] or [longest]


def _draft(request: DoctorRequest, workload: Workload) -> tuple[Draft, str]:
    """The draft of ``skip_set``; without one every third attention and MLP is left out, as an example."""
    num_layers = workload.loaded.num_layers
    if request.skip_set is None:
        return Draft(SkipSet.uniform(num_layers, num_layers // 3, num_layers // 3)), "uniform, as an example"
    (source,) = gather(BenchRequest(skip_sets=(request.skip_set,)))
    return source.draft(workload.loaded, None), source.label

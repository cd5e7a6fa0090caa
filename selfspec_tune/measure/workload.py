"""Everything that a search and a bench measure with: model, runner and rendered prompts.

Where the processor has no products of bfloat16, transformers runs on torch's imitation: single
tokens fast, for few bytes are read, and many at once slowly. Our own runners do without it, and a
rival must not lose to that. Which copy is faster for an arm is told by timing both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from torch import nn

from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.costs import CostModel, StepCosts
from selfspec_tune.engine import Limits, Runner, Sampler, choose_runner
from selfspec_tune.engine.cost_fit import measure_step_costs
from selfspec_tune.engine.layers.quantize import typical_text
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.engine.teacher_forcing import DraftScorer, Window, make_scorer
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel, find_sublayers, load_model
from selfspec_tune.models.bound import bind
from selfspec_tune.models.devices import cpu_computes_bfloat16
from selfspec_tune.models.generation_settings import ignored_settings, in_words
from selfspec_tune.models.origin import stated_context_length
from selfspec_tune.plans.cost_class import CostClass, classes_by_kind, cost_classes
from selfspec_tune.prompts import (
    Prompt,
    Template,
    check_characters,
    draw_prompts,
    fit_context,
    fit_vocabulary,
    load_prompts,
    render,
    those_that_fit,
)
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DEFAULT_NUM_PROMPTS, ModelOptions, PromptOptions

_ROOM = 1.2  # of the copy's bytes, that must be free


@dataclass(slots=True)
class TheirModel:
    """Of one run. ``is_widened``: by an arm's id, whether it runs in float32, as far as that is settled."""

    loaded: LoadedModel
    is_widened: dict[str, bool] = field(default_factory=dict)
    _copy: LoadedModel | None = field(init=False, default=None)

    def in_float32(self) -> LoadedModel | None:
        """The copy; None where it cannot be faster, or does not fit into memory."""
        if self._copy is None and _is_imitated(self.loaded) and _fits(self.loaded):
            self._copy = widened(self.loaded)
        return self._copy


def widened(loaded: LoadedModel) -> LoadedModel:
    """A copy of ``loaded`` in float32."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().float(), requires_grad=False)
        for parameter in loaded.model.parameters()
    }
    model = deepcopy(loaded.model, memo).float()  # with the parameters of the memo; what is left are buffers
    return replace(loaded, model=model, dtype=torch.float32, sublayers=find_sublayers(model))


def _is_imitated(loaded: LoadedModel) -> bool:
    is_bfloat16 = loaded.dtype == torch.bfloat16 and not loaded.is_quantised  # packed weights cannot be widened
    return loaded.device.type == "cpu" and is_bfloat16 and not cpu_computes_bfloat16()


def _fits(loaded: LoadedModel) -> bool:
    needed = sum(4 * parameter.numel() for parameter in loaded.model.parameters())
    return psutil.virtual_memory().available > _ROOM * needed


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One thing to decode: token ids that start it, and where it ends.

    ``id`` names the item within a study; several items may come from one prompt.
    """

    id: str
    prompt: Prompt
    tokens: tuple[int, ...]
    limits: Limits


@dataclass(slots=True)
class Workload:
    """A loaded model, the runner that serves it, and how prompts become items.

    ``cost_context``: after how many tokens the steps are timed that a cost-aware policy counts on.
    ``costs``: the model of the engine's steps that it counts on instead, where one is known for every draft.
    ``theirs``: what transformers' own ways of decoding run on.
    ``alone``: runs drafts with a cache of their own, where such drafts are meant; everything else `runner` does.
    """

    loaded: LoadedModel
    runner: Runner
    options: PromptOptions
    cost_context: int = 128
    costs: CostModel | None = None
    alone: StandaloneRunner | None = None
    theirs: TheirModel | None = None
    sampler: Sampler = field(init=False)
    _full_steps: StepCosts | None = field(init=False, default=None)
    _step_costs: dict[Draft, StepCosts] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.theirs = self.theirs or TheirModel(self.loaded)
        self.sampler = Sampler.of(self.options, self.options.seed)

    @property
    def speculating(self) -> Runner:
        """What drafts and verifies."""
        return self.runner if self.alone is None else self.alone

    def standing_alone(self) -> Workload:
        """The same for drafts that have a cache of their own, in a second runner of the same weights."""
        return replace(self, alone=StandaloneRunner.of(self.runner, self.loaded))

    def scorer(self, windows: Sequence[Window], depths: int = 1) -> DraftScorer:
        """A scorer of this workload's drafts; ``depths`` as `make_scorer` has it."""
        return self._scorer(windows, standalone=self.alone is not None, depths=depths)

    def standalone_scorer(self, windows: Sequence[Window]) -> DraftScorer:
        """A scorer of drafts that stand alone, whatever this workload's do."""
        return self._scorer(windows, standalone=True)

    def _scorer(self, windows: Sequence[Window], **how: Any) -> DraftScorer:
        penalty = self.sampler.repetition_penalty
        return make_scorer(self.runner, self.loaded, windows, repetition_penalty=penalty, **how)

    def step_costs(self, draft: Draft) -> StepCosts:
        """Seconds of decoding, drafting and verifying with ``draft``; measured once, whatever its policy.

        The full model's steps are the same for all drafts, so that they differ in their draft steps alone.
        """
        if self.costs is not None:
            return self.costs.steps(draft)
        steps = replace(draft, policy=DraftPolicy())
        if steps not in self._step_costs:
            context, limit = self.typical_tokens(self.cost_context), self.loaded.context_length
            measured = measure_step_costs(self.runner, context, draft, self._full_steps, context_length=limit)
            self._full_steps = self._step_costs[steps] = measured
        return self._step_costs[steps]

    def typical_tokens(self, count: int) -> list[int]:
        """So many tokens of text to time steps on, repeated where there are no more.

        Which they are has no influence on the time, but with experts: tokens drawn at random go to more of them.
        """
        text = typical_text(self.loaded, self.runner.vocabulary_size) or [0]
        return (text * (count // len(text) + 1))[:count]

    @property
    def cost_classes(self) -> tuple[CostClass, ...]:
        """Which sub-layers cost the same: by the model's plan, without one by kind."""
        try:
            return cost_classes(bind(self.loaded.model).plan)
        except UnsupportedModelError:
            return classes_by_kind(self.loaded.num_layers)

    def reopened(self, options: PromptOptions) -> Workload:
        """The same model and runner as when just opened, for the prompts of other ``options``."""
        if isinstance(self.runner, FastRunner):
            self.runner.extra_memory_bytes = None
        return Workload(self.loaded, self.runner, options, theirs=self.theirs)

    def limits(self, max_new_tokens: int | None = None) -> Limits:
        """The model's end-of-sequence tokens with ``max_new_tokens`` (default: the options')."""
        return Limits(max_new_tokens or self.options.max_new_tokens, frozenset(self.loaded.eos_token_ids))

    def fitting(self, prompts: Sequence[Prompt], notice: Callable[[str], None]) -> list[Prompt]:
        """The prompts that fit the model's context; ``notice`` is told of the others. `PromptError` if none does."""
        return those_that_fit(prompts, lambda prompt: self.items([prompt])[0].prompt, notice)

    def items(self, prompts: Sequence[Prompt]) -> list[WorkItem]:
        """Whole prompts as work items. Raises `ContextError` where one exceeds the model's context."""
        template = Template(self.options.template)
        items = []
        for prompt in prompts:
            check_characters(prompt, self.loaded.context_length)
            tokens = render(prompt, self.loaded.tokenizer, template, date=self.options.template_date)
            fit_vocabulary(tokens, self.loaded.vocabulary_size, self.loaded.tokenizer, prompt_id=prompt.id)
            fit_context(
                tokens,
                self.options.max_new_tokens,
                self.loaded.context_length,
                prompt_id=prompt.id,
            )
            items.append(WorkItem(prompt.id, prompt, tuple(tokens), self.limits()))
        return items


def load_some(options: PromptOptions, notice: Callable[[str], None] = lambda _: None) -> tuple[Prompt, ...]:
    """The prompts of the options' source: as many as asked for, else 64 or all where there are fewer.

    ``notice`` is told of rows that are no prompts, as by `load_prompts`.
    """
    everything = load_prompts(options.source, tasks=options.tasks, notice=notice)
    if options.num_prompts is not None:
        return draw_prompts(everything, options.num_prompts, seed=options.seed)
    return draw_prompts(everything, min(len(everything), DEFAULT_NUM_PROMPTS), seed=options.seed)


def open_workload(
    model: ModelOptions, prompts: PromptOptions, reporter: Reporter, begun_with: str | None = None
) -> Workload:
    """Load the model and choose its runner; says what was chosen through ``reporter``.

    ``begun_with``: the runner of what is resumed, if anything is; ``auto`` then takes it again. Raises `UsageError`
    before anything is loaded where the model's context has no room for the new tokens.
    """
    _check_room(model, prompts)
    reporter.stage("load", model.name)
    loaded = load_model(
        model.name,
        dtype=model.dtype,
        device=model.device,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        revision=model.revision,
    )
    for note in loaded.notes:
        reporter.notice(note)
    runner = choose_runner(loaded, model.runner, reporter.notice, begun_with=begun_with)
    about = loaded.describe()
    reporter.notice(
        f"{about['id']}: {about['architecture']}, {loaded.num_layers} layers, {about['parameters'] / 1e6:.0f}M "
        f"parameters, {about['dtype']} on {about['device']}, {runner.name} runner"
    )
    _tell_ignored(loaded, prompts, reporter)
    return Workload(loaded, runner, prompts)


def _check_room(model: ModelOptions, prompts: PromptOptions) -> None:
    context = stated_context_length(model.name, model.revision)
    if context is not None and prompts.max_new_tokens >= context:
        raise UsageError(
            f"`max_new_tokens` {prompts.max_new_tokens}: the context of {model.name} has {context} positions, for a "
            f"prompt and its answer. Give less than {context}, or a model with a longer context."
        )


def _tell_ignored(loaded: LoadedModel, options: PromptOptions, reporter: Reporter) -> None:
    """What the checkpoint or the options ask for and is not measured."""
    if about := options.about_idle:
        reporter.notice(about)
    ignored = ignored_settings(loaded.generation_settings, options)
    if ignored:
        how = "greedy decoding" if options.greedy else f"sampling at temperature {options.temperature:g}"
        reporter.notice(
            f"the checkpoint's generation_config asks for {in_words(ignored)}; what is measured is {how} without. "
            "Servers follow it unless told otherwise, and gain less or more then"
        )


def shortened(item: WorkItem, max_new_tokens: int) -> WorkItem:
    """The same item with a smaller limit."""
    limits = type(item.limits)(min(max_new_tokens, item.limits.max_new_tokens), item.limits.eos_token_ids)
    return WorkItem(item.id, item.prompt, item.tokens, limits)

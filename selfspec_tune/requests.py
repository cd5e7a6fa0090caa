"""What a user asks of a search or a bench: plain values, no torch.

The command line builds these from its options; library users build them by hand.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from selfspec_tune.checks import MOST_TOKENS, is_within
from selfspec_tune.draft import DraftSource, PolicyKind
from selfspec_tune.draft.sources import SOURCES, wanted
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.files import writable

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_NUM_PROMPTS = 64
SMALLEST_TEMPERATURE = 1e-5  # below, one token has all of the probability: that is greedy decoding
LARGEST_TEMPERATURE = 100.0  # above, every token is as likely as any other
_TEMPERATURE = f"0 (greedy) or more, up to {LARGEST_TEMPERATURE:g}"
LARGEST_SEED = 2**31 - 1  # every generator takes it, and what is derived from it
LONGEST_DRAFT = 1024
_MOST_ROUNDS = 1000
SHORTEST_CONTEXT = 16
TEMPLATE_DATE = "26 Jul 2024"
_THRESHOLD_POLICIES = ("threshold", "adaptive")

_MEMORY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[kmgt]i?b|b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1} | {
    prefix + infix + "b": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for infix, base in (("i", 1024), ("", 1000))
}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is loaded. ``runner``: auto, native, graphs, fast or reference.

    ``revision``: branch, tag or commit of a hub id; None: the hub's default.
    """

    name: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    runner: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    revision: str | None = None


def check_number(option: str, value: object, least: float, most: float, expected: str, *, whole: bool = False) -> None:
    """Raise `UsageError` unless ``value`` is a number (a ``whole`` one) from ``least`` to ``most``: NaN never is."""
    if not is_within(value, least, most, whole=whole):
        raise UsageError(f"`{option}` {value!r}: expected {expected}.")


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Which prompts, and how they are continued. ``num_prompts`` None: 64, or all where there are fewer.

    ``temperature`` 0 is greedy, and what is below `SMALLEST_TEMPERATURE` becomes 0; ``top_k`` 0 and ``top_p`` 1 keep
    all. With ``tasks``, prompts of these alone, and each task is split on its own. ``template_date``: what chat
    templates print as today's.
    """

    source: str = "builtin"
    num_prompts: int | None = None
    max_new_tokens: int = 128
    template: str = "auto"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    tasks: tuple[str, ...] = ()
    template_date: str = TEMPLATE_DATE

    def __post_init__(self) -> None:
        are_names = isinstance(self.tasks, tuple | list) and all(isinstance(task, str) for task in self.tasks)
        if not are_names or not isinstance(self.source, str) or not isinstance(self.template, str):
            raise UsageError(
                f"Prompts of {self.source!r}, tasks {self.tasks!r}, template {self.template!r}: expected names. If a "
                "skip.json says so, correct its provenance, or give `prompts`, `task` and `template`."
            )
        object.__setattr__(self, "tasks", tuple(sorted(set(self.tasks))))
        if self.num_prompts is not None:
            check_number("num_prompts", self.num_prompts, 1, math.inf, "at least 1", whole=True)
        longest = f"at least 2, up to {MOST_TOKENS}"
        check_number("max_new_tokens", self.max_new_tokens, 2, MOST_TOKENS, longest, whole=True)
        check_number("seed", self.seed, 0, LARGEST_SEED, f"0 or more, up to {LARGEST_SEED}", whole=True)
        check_number("temperature", self.temperature, 0, LARGEST_TEMPERATURE, _TEMPERATURE)
        if self.temperature < SMALLEST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        check_number("top_p", self.top_p, math.ulp(0.0), 1, "above 0 and at most 1")
        check_number("top_k", self.top_k, 0, math.inf, "0 (off) or more", whole=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for our files, without ``tasks`` where prompts of all tasks are meant."""
        plain = {**asdict(self), "source": writable(self.source), "tasks": list(self.tasks)}
        return plain if self.tasks else {key: value for key, value in plain.items() if key != "tasks"}


@dataclass(frozen=True, slots=True)
class ExtraMemory:
    """What low-precision copies of weights may take beyond the model: a ``share`` of it, or ``num_bytes``."""

    share: float = 0.0
    num_bytes: int = 0

    @classmethod
    def parse(cls, text: str) -> ExtraMemory:
        """Read ``30%``, ``2GiB``, ``512MiB`` or ``0``. Raises `UsageError`."""
        found = _MEMORY.fullmatch(text.strip())
        if found is None or (found["unit"] is None and float(found["number"]) != 0):
            raise UsageError(
                f"`extra_memory` {text!r}: expected a share of the weights such as 30%, a size such as 2GiB or 512MiB, "
                "or 0 for none."
            )
        number, unit = float(found["number"]), (found["unit"] or "").lower()
        if not math.isfinite(number * _UNITS.get(unit, 1)):
            raise UsageError(f"`extra_memory` {text!r}: no memory is so large.")
        if unit == "%":
            return cls(share=number / 100)
        return cls(num_bytes=round(number * _UNITS.get(unit, 0)))

    def bytes(self, of: int) -> int:
        """Bytes allowed beside weights of ``of`` bytes."""
        return self.num_bytes + int(self.share * of)

    def __str__(self) -> str:
        if self.share:
            return f"{100 * self.share:g}%"
        return f"{self.num_bytes}B" if self.num_bytes else "0"


class PolicyChoice(StrEnum):
    """The policy to search with: one kind, or auto, which searches those of `SEARCHED_POLICIES`."""

    AUTO = "auto"
    FIXED = PolicyKind.FIXED.value
    THRESHOLD = PolicyKind.THRESHOLD.value
    ADAPTIVE = PolicyKind.ADAPTIVE.value
    COST_AWARE = PolicyKind.COST_AWARE.value


# Fixed lengths gain nowhere, and an adaptive threshold is level with the best fixed one.
SEARCHED_POLICIES = (PolicyKind.COST_AWARE, PolicyKind.THRESHOLD)


class Objective(StrEnum):
    """What a draft is judged as: one that shares the model's cache, or one to be exported, which stands alone."""

    SHARED = "shared"
    STANDALONE = "standalone"


EXACT_MATCH = "exact match"
"""How standalone drafts are accepted where the target samples: each is the draft's most probable token, and stays where
the target draws the same. So do servers by default (vLLM's `draft_sample_method` greedy)."""


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """The draft to search with. ``policy`` is a `PolicyChoice`; ``vocabulary``: auto, full, or a number of token ids.

    ``ngram`` looks tokens up in the context first; ``precision`` is the text form of a
    `DraftPrecision`, whose copies of weights may take ``extra_memory``, or auto: the lowest
    one that the engine has kernels for and whose copies fit, else the model's own. A ``standalone`` draft is what
    other runtimes run: it looks nothing up, covers every token id, at the model's own precision.
    """

    policy: str = PolicyChoice.AUTO.value
    max_draft_tokens: int | None = None
    exit_threshold: float | None = None
    vocabulary: str = "auto"
    ngram: bool = True
    precision: str = "auto"
    extra_memory: ExtraMemory = ExtraMemory(share=0.3)
    objective: Objective = Objective.SHARED

    @property
    def source_choices(self) -> dict[str, bool]:
        """Whether each source is drafted from, by its name."""
        return {name: getattr(self, name) for name in SOURCES if hasattr(self, name)}

    @property
    def sources(self) -> tuple[DraftSource, ...]:
        """Those that are drafted from."""
        return wanted(self.source_choices)

    def without_sources(self) -> DraftOptions:
        """The same for a draft by the model alone."""
        none: dict[str, Any] = dict.fromkeys(self.source_choices, False)
        return replace(self, **none)

    @property
    def policy_kinds(self) -> tuple[PolicyKind, ...]:
        """The kinds of policy that are searched; a threshold that was asked for wants a policy that has one."""
        if self.policy != PolicyChoice.AUTO:
            return (PolicyKind(self.policy),)
        if self.objective is Objective.STANDALONE and self.exit_threshold is None:
            return (PolicyKind.FIXED,)
        return SEARCHED_POLICIES if self.exit_threshold is None else (PolicyKind.THRESHOLD,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", Objective(self.objective))  # the command line has plain values
        if self.objective is Objective.STANDALONE:
            self._check_standalone()
        if self.max_draft_tokens is not None:
            length = f"1 to {LONGEST_DRAFT}"
            check_number("max_draft_tokens", self.max_draft_tokens, 1, LONGEST_DRAFT, length, whole=True)
        if self.exit_threshold is not None:
            check_number("exit_threshold", self.exit_threshold, 0, 1, "a probability, 0 to 1")
        if self.exit_threshold is not None and not set(_THRESHOLD_POLICIES).intersection(self.policy_kinds):
            raise UsageError(
                f"`exit_threshold` {self.exit_threshold:g}: the {self.policy} policy has no threshold. Add `policy` "
                f"{' or '.join(_THRESHOLD_POLICIES)}, or leave it out."
            )

    def _check_standalone(self) -> None:
        """Raise `UsageError` for what no other runtime's draft does, and leave out what it lacks by default."""
        given = f"`objective` {self.objective}: a draft of another runtime"
        if self.policy not in (PolicyChoice.AUTO, PolicyChoice.FIXED, PolicyChoice.THRESHOLD):
            raise UsageError(
                f"{given} goes by a fixed length or a threshold, not by `policy` {self.policy}. Name one of these, or "
                "leave it out."
            )
        if self.precision not in ("auto", "same"):
            raise UsageError(
                f"{given} has a precision of its own, so `draft_precision` {self.precision} is lost. Leave it out."
            )
        if self.vocabulary not in ("auto", "full"):
            raise UsageError(f"{given} covers all token ids, so `draft_vocab` {self.vocabulary} is lost. Leave it out.")
        alone = dict.fromkeys(self.source_choices, False)
        for name, value in {**alone, "precision": "same", "vocabulary": "full"}.items():
            object.__setattr__(self, name, value)


class StrategyName(StrEnum):
    """Ways to search: our own in stages, Optuna's samplers, uniform skipping, and those of two other projects."""

    STAGED = "staged"
    TPE = "tpe"
    GP = "gp"
    CMAES = "cmaes"
    RANDOM = "random"
    UNIFORM = "uniform"
    SELF_SD = "self-sd"
    SWIFT = "swift"


_PUBLISHED = frozenset({StrategyName.SELF_SD, StrategyName.SWIFT})


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One search by a ``strategy``.

    ``trials`` and ``timeout_seconds`` bound it, whichever comes first; None: no bound of that kind.
    ``start_from``: skip sets to try first, as files in any dialect, folders of studies or texts.
    """

    out: Path
    model: ModelOptions = field(default_factory=ModelOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    draft: DraftOptions = field(default_factory=DraftOptions)
    trials: int | None = None
    timeout_seconds: float | None = None
    strategy: StrategyName = StrategyName.STAGED
    start_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.draft.objective is Objective.STANDALONE and self.strategy in _PUBLISHED:
            raise UsageError(
                f"`strategy` {self.strategy} searches, as it was published, for drafts that share the model's cache. "
                "Choose another strategy, or leave out `objective` standalone."
            )
        own = {os.path.realpath(path) for path in (self.out, self.out / "skip.json")}
        for start in self.start_from:
            if os.path.realpath(start) in own:
                raise UsageError(
                    f"`start_from` {start} is this search's own folder, where it resumes by itself. Leave it out, or "
                    "give another `out`."
                )
        if self.trials is not None and self.trials < 1:
            raise BudgetError(f"`trials` {self.trials}: expected at least 1. A search measures at least one trial.")
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds < math.inf:
            raise BudgetError(f"`timeout` {self.timeout_seconds:g}s: expected a positive duration such as 45m or 2h.")


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The same ``search`` by several ``strategies``, each in a folder of its own under ``search.out``.

    ``early_seconds``: what those of ``early_strategies`` would have given after so long is measured too.
    """

    search: SearchRequest
    strategies: tuple[StrategyName, ...]
    early_seconds: tuple[float, ...] = ()
    early_strategies: frozenset[StrategyName] = frozenset({StrategyName.STAGED})

    def __post_init__(self) -> None:
        if len(set(self.strategies)) < max(2, len(self.strategies)):
            names = ", ".join(self.strategies) or "none"
            raise UsageError(f"`strategies` {names}: expected at least two different ones.")
        if self.early_seconds and not self.early_strategies & set(self.strategies):
            some = ", ".join(sorted(self.early_strategies))
            raise UsageError(f"`early` measures what {some} had found: name it in `strategies`, or leave `early` out.")


@dataclass(frozen=True, slots=True)
class DoctorRequest:
    """One look at the machine, and at ``model`` where one is given.

    ``skip_set``: the draft to time, as text or a file of any dialect. ``contexts``: tokens of
    context to time at, the first of them most thoroughly; empty: those of the cost model.
    """

    model: ModelOptions | None = None
    skip_set: str | None = None
    contexts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.contexts):
            raise UsageError(f"`contexts` {min(self.contexts)}: expected lengths of at least 1 token.")
        if self.model is None and (self.skip_set is not None or self.contexts):
            raise UsageError("`skip_set` and `contexts` are about a model's steps. Name the model with `model`.")


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One bench. ``skip_files`` in any dialect, ``skip_sets`` as text or files; with neither, the newest study.

    Model and prompts are those of the (first) skip.json or study; the overrides replace single
    fields of its `ModelOptions` and `PromptOptions`, as (field, value) pairs. Where there is no
    study they replace fields of the defaults, the model's ``name`` among them. ``draft_overrides``
    are fields of `DraftOptions` (policy, max_draft_tokens, exit_threshold, ngram, precision) that every skip set then
    drafts with.

    With a ``log`` (see `log_beside`) raw runs are kept as they come and a bench resumes from
    them; ``fresh`` puts an earlier log aside and measures anew.

    ``rivals``: what a user would pick instead runs on every prompt too, with ``draft_model`` (a
    model's name) and ``early_exit`` (layers kept; None: a third) for those rivals that need one.
    ``parts``: so do the parts of the first skip set's draft, and that draft under the other policies.
    """

    skip_files: tuple[Path, ...] = ()
    skip_sets: tuple[str, ...] = ()
    model_overrides: tuple[tuple[str, object], ...] = ()
    prompt_overrides: tuple[tuple[str, object], ...] = ()
    draft_overrides: tuple[tuple[str, object], ...] = ()
    studies: Path = Path("studies")
    rounds: int = 1
    reference_prompts: int = 8
    uniform_and_random: bool = True
    allow_calibration: bool = False
    rivals: bool = False
    draft_model: str | None = None
    early_exit: int | None = None
    parts: bool = False
    log: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.reference_prompts < 1:
            raise UsageError(
                f"`reference_prompts` {self.reference_prompts}: expected at least 1; without model.generate beside it "
                "no speedup is stated."
            )
        check_number("rounds", self.rounds, 1, _MOST_ROUNDS, f"at least 1, up to {_MOST_ROUNDS}", whole=True)
        if self.early_exit is not None and self.early_exit < 1:
            raise UsageError(f"`early_exit` {self.early_exit}: expected at least 1, the number of layers that draft.")
        for option, value in (("draft_model", self.draft_model), ("early_exit", self.early_exit)):
            if value is not None and not self.rivals:
                raise UsageError(f"`{option}` {value}: it sets up a rival; add `rivals` to measure rivals at all.")
        if self.fresh and self.log is None:
            raise UsageError("`fresh` measures again what a file holds; give that file with `out`.")


def log_beside(result: Path) -> Path:
    """Where the raw runs behind a result file are kept: ``bench.runs.jsonl`` beside ``bench.json``."""
    stem = result.stem if result.suffix == ".json" else result.name
    return result.with_name(f"{stem}.runs.jsonl")


class SweepKind(StrEnum):
    """What a sweep varies: prompt tokens, sampling temperature, or the longest draft."""

    CONTEXT = "context"
    TEMPERATURE = "temperature"
    MAX_DRAFT = "max-draft"


SWEEP_VALUES: dict[SweepKind, tuple[float, ...]] = {
    SweepKind.CONTEXT: (256, 512, 1024, 2048, 4096),
    SweepKind.TEMPERATURE: (0.0, 0.3, 0.7, 1.0),
    SweepKind.MAX_DRAFT: (1, 2, 3, 4, 6, 8, 12, 16),
}
_LEAST = {SweepKind.CONTEXT: SHORTEST_CONTEXT, SweepKind.TEMPERATURE: 0, SweepKind.MAX_DRAFT: 1}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A bench at several ``values`` of one thing, interleaved; None: those of `SWEEP_VALUES` that the model allows."""

    bench: BenchRequest
    kind: SweepKind
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind is SweepKind.TEMPERATURE and "temperature" in dict(self.bench.prompt_overrides):
            raise UsageError("`sweep` temperature sets the temperature itself; give `sweep_values`, not `temperature`.")
        if self.bench.rivals:
            raise UsageError("`rivals` run beside one bench; leave them out with `sweep`.")
        if self.bench.parts:
            raise UsageError("`parts` run beside one bench; leave them out with `sweep`.")
        if self.values is None:
            return
        if self.kind is SweepKind.TEMPERATURE:
            greedy = tuple(0.0 if 0 < value < SMALLEST_TEMPERATURE else value for value in self.values)
            object.__setattr__(self, "values", greedy)
        if len(set(self.values)) < max(2, len(self.values)):
            raise UsageError(f"`sweep_values` {_joined(self.values)}: expected at least two values, all different.")
        for value in self.values:
            self._check(value)
        object.__setattr__(self, "values", tuple(sorted(self.values)))

    def _check(self, value: float) -> None:
        least, is_whole = _LEAST[self.kind], self.kind is not SweepKind.TEMPERATURE
        if not math.isfinite(value) or value < least or (is_whole and value != int(value)):
            kind = "whole numbers" if is_whole else "numbers"
            raise UsageError(f"`sweep_values` {value:g}: `sweep` {self.kind} takes {kind} from {least} on.")
        if self.kind is SweepKind.TEMPERATURE:
            check_number("sweep_values", value, 0, LARGEST_TEMPERATURE, _TEMPERATURE)
        if self.kind is SweepKind.MAX_DRAFT and value > LONGEST_DRAFT:
            raise UsageError(f"`sweep_values` {value:g}: expected drafts of at most {LONGEST_DRAFT} tokens.")


def _joined(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


class RuntimeName(StrEnum):
    """Runtimes that a bench drives."""

    LLAMACPP = "llamacpp"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class RuntimeBenchRequest:
    """A bench of the export in ``folder``, in ``runtime``.

    ``dtype`` and ``device``: of transformers, as `ModelOptions` has them; a GGUF file states its own. ``context``: of
    llama.cpp's cache. ``log``: where runs are kept as they come; ``fresh`` measures again what it holds.
    """

    folder: Path
    runtime: RuntimeName
    prompts: PromptOptions
    dtype: str = "auto"
    device: str = "auto"
    context: int = 4096
    log: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        asked = self.prompts.max_new_tokens
        if self.runtime is RuntimeName.LLAMACPP and asked >= self.context:
            raise UsageError(
                f"`max_new_tokens` {asked}: the runtime's context has {self.context} positions, for a prompt and its "
                f"answer. Give less than {self.context}."
            )


class DraftFormat(StrEnum):
    """Drafts that an export writes for other runtimes."""

    HF_DRAFT = "hf-draft"
    HF_ZERO = "hf-zero"
    NAS = "nas"
    GGUF = "gguf"
    TRANSFORMERS_GENERATE = "transformers-generate"


GGUF_WEIGHTS = ("copy", "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: skip.json, or another project's file.
        out: the directory to make.
        model: the target, where ``source`` does not lead to it.
        gguf: its GGUF file, where the model itself is none.
        weights: of a GGUF draft: copy, f32, f16 or bf16.
        draft_tokens: at most, of a draft; None: what the search found best.
        force: whether an earlier export in ``out`` is replaced.
        revision: branch, tag or commit of the target on the hub; None: that which was searched, as far as known.
    """

    source: Path
    format: DraftFormat
    out: Path
    model: str | None = None
    gguf: Path | None = None
    weights: str = "copy"
    draft_tokens: int | None = None
    force: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in GGUF_WEIGHTS:
            raise UsageError(f"`weights` {self.weights}: expected {', '.join(GGUF_WEIGHTS)}.")
        if self.draft_tokens is not None:
            length = f"at least 1, up to {LONGEST_DRAFT}"
            check_number("draft_tokens", self.draft_tokens, 1, LONGEST_DRAFT, length, whole=True)

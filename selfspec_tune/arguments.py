"""From the options of a command, or the arguments of a function of the library, to requests.

Options that were not given are None: the defaults live in `selfspec_tune.requests`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from selfspec_tune.checks import check_kind, check_option_names, checked_arguments
from selfspec_tune.draft import MOST_EXPERTS, DraftPrecision
from selfspec_tune.draft.sources import SOURCES
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.prompts.render import Template
from selfspec_tune.requests import (
    BenchRequest,
    DraftOptions,
    ExtraMemory,
    ModelOptions,
    Objective,
    PolicyChoice,
    PromptOptions,
    SearchRequest,
    StrategyName,
)

STUDIES = Path("studies")
DEFAULT_TIMEOUT = "45m"
_MOST_LAYERS = 1000  # more than any model has
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.IGNORECASE | re.ASCII)
Word = TypeVar("Word", bound=StrEnum)
# Options whose field has another name, in whichever part of a request it is.
RENAMED = {"model": "name", "prompts": "source", "timeout": "timeout_seconds", "to": "format"}
# What a bench may change in any draft, and what its request holds besides its own options.
_OF_ANY_DRAFT = ("policy", "max_draft_tokens", "exit_threshold", *SOURCES, "precision", "experts")
_PARTS_OF_BENCH = ("model_overrides", "prompt_overrides", "draft_overrides", "studies")
_WORDS: dict[str, type[StrEnum]] = {"policy": PolicyChoice, "template": Template, "objective": Objective}
_NUMBER = re.compile("[0-9]{1,9}")  # str.isdecimal takes the digits of every script


@checked_arguments
def search_request(
    *,
    out: Path | None = None,
    trials: int | None = None,
    timeout: str | float | None = None,
    strategy: str | None = None,
    start_from: list[str] | tuple[str, ...] | None = None,
    folder: str = "",
    **options: Any,
) -> SearchRequest:
    """The search that is asked for; ``options``: of its model, prompts and draft. Raises `UsageError`.

    ``folder``: what the default folder's name ends with.
    """
    parts = [*_fields(ModelOptions), *_fields(PromptOptions), *_fields(DraftOptions)]
    check_option_names("a search", options, [*parts, "out", "trials", "timeout", "strategy", "start_from"])
    model, prompts = ModelOptions(**_of(ModelOptions, options)), prompt_options(**options)
    drafting = _of(DraftOptions, options)
    _check_engine_is_ours(drafting)
    return SearchRequest(
        out=out or default_folder(model.name, prompts.source, folder),
        model=model,
        prompts=prompts,
        draft=DraftOptions(**drafting),
        trials=trials,
        timeout_seconds=budget_seconds(trials, timeout),
        strategy=_word(StrategyName, "strategy", strategy or StrategyName.STAGED),
        start_from=tuple(start_from or ()),
    )


def prompt_options(**options: Any) -> PromptOptions:
    """Which prompts are asked for, and how they are continued; other ``options`` are passed over."""
    return PromptOptions(**_of(PromptOptions, options))


@checked_arguments
def bench_request(*, uniform_and_random: bool = True, **options: Any) -> BenchRequest:
    """The bench that is asked for; ``options``: its own, and of model, prompts and drafts. Raises `UsageError`."""
    own = [name for name in _fields(BenchRequest) if name not in _PARTS_OF_BENCH]
    parts = [*_fields(ModelOptions), *_fields(PromptOptions), *_OF_ANY_DRAFT]
    check_option_names("a bench", options, [*parts, *own])
    parse_precision(options.get("precision"))  # auto is a search's
    parse_experts(options.get("experts"))
    of_draft = {name: value for name, value in options.items() if name in _OF_ANY_DRAFT}
    return BenchRequest(
        model_overrides=tuple(_of(ModelOptions, options).items()),
        prompt_overrides=tuple(_of(PromptOptions, options).items()),
        draft_overrides=tuple(_of(DraftOptions, of_draft).items()),
        studies=STUDIES,
        uniform_and_random=uniform_and_random,
        **_of(BenchRequest, options),
    )


def _check_engine_is_ours(drafting: Mapping[str, Any]) -> None:
    for name in (*SOURCES, "extra_memory"):
        if drafting.get("objective") == Objective.STANDALONE and drafting.get(name):
            raise UsageError(
                f"`{name}` is for a draft in this program's engine; leave it out with `objective` standalone."
            )


def _fields(part: Any) -> dict[str, str]:
    """The fields of a part of a request, by the names of the options that set them."""
    names = {field: name for name, field in RENAMED.items()}
    return {names.get(field.name, field.name): field.name for field in fields(part)}


def _of(part: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those ``options`` that were given and are fields of ``part``, by the fields' names. Raises `UsageError`."""
    found, own = {}, _fields(part)
    for name, value in options.items():
        field = own.get(name)
        if field is None or value is None or (value is False and part.__dataclass_fields__[field].default is False):
            continue
        check_kind(name, value, _KINDS.get(name, object))
        value = value.value if isinstance(value, StrEnum) else value
        if name in _WORDS:
            _word(_WORDS[name], name, value)
        found[field] = _READ[name](value) if name in _READ else value
    return found


def _word(kind: type[Word], name: str, value: str) -> Word:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"`{name}` {value!r}: expected one of {', '.join(kind)}.") from None


def default_folder(model: str, prompts: str, ending: str = "") -> Path:
    """Where a study goes that was given no folder: ``studies/<model>-<prompts>``, and the ``ending``."""
    return STUDIES / f"{slug(model)}-{slug(prompts)}{ending}"


def budget_seconds(trials: int | None, timeout: str | float | None) -> float | None:
    """The time limit in seconds; without any budget 45 minutes, None where trials alone bound it."""
    if timeout is None and trials is not None:
        return None
    if isinstance(timeout, int | float):
        return float(timeout)
    return parse_duration(timeout if timeout is not None else DEFAULT_TIMEOUT)


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``45m``, ``1.5h`` or ``1h30m``. Raises `BudgetError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise BudgetError(f"`timeout` {text!r} is no duration; expected a form like 90, 90s, 45m, 2h or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def parse_vocabulary(text: str | None) -> str | None:
    """``auto``, ``full`` or a number of token ids, checked. Raises `UsageError`."""
    if text is None or text in ("auto", "full") or (_NUMBER.fullmatch(text) and int(text) > 0):
        return text
    raise UsageError(f"`vocabulary` {text!r}: expected auto, full, or a positive number of token ids.")


def parse_precision(text: str | None, *, auto: bool = False) -> str | None:
    """The text form of a `DraftPrecision`, checked as far as can be without a model; ``auto`` where it is allowed.

    Raises `UsageError`.
    """
    if text is not None and not (auto and text == "auto"):
        DraftPrecision.parse(text, _MOST_LAYERS)
    return text


def parse_experts(text: str | None, *, auto: bool = False) -> str | None:
    """``same`` or a number of experts, checked; ``auto`` where it is allowed. Raises `UsageError`."""
    words = ("auto", "same") if auto else ("same",)
    if text is None or text in words or (_NUMBER.fullmatch(text) and 0 < int(text) <= MOST_EXPERTS):
        return text
    raise UsageError(f"`experts` {text!r}: expected {', '.join(words)}, or a positive number of experts.")


def parse_extra_memory(text: str | None) -> ExtraMemory | None:
    """``30%``, ``2GiB`` or ``0``. Raises `UsageError`."""
    return None if text is None else ExtraMemory.parse(text)


def slug(text: str) -> str:
    """A name fit for a folder: the last part of a path or hub id, in lower case with dashes."""
    name = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"\.(gguf|jsonl|json|csv|txt|parquet)$", "", name)
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"


def parse_contexts(text: str | None) -> tuple[int, ...]:
    """Lengths as in ``128,1024``, in that order, none twice. Raises `UsageError`."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_NUMBER.fullmatch, parts)):
        raise UsageError(f"`contexts` {text!r}: expected numbers of tokens, separated by commas, such as 128,1024.")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_sweep_values(text: str | None) -> tuple[float, ...] | None:
    """The numbers of ``256,512,1024``, None where none are given. Raises `UsageError`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"`sweep_values` {text!r}: expected numbers and commas, such as 256,512,1024.") from None


# Of options that are read, or whose field has another name, before they are.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("model", "prompts", "vocabulary", "precision", "experts", "extra_memory"), str),
    "tasks": list[str] | tuple[str, ...],
    "skip_files": list[Path] | tuple[Path, ...],
    "skip_sets": list[str] | tuple[str, ...],
}
_READ: dict[str, Callable[[Any], Any]] = {
    "tasks": tuple,
    "skip_files": tuple,
    "skip_sets": tuple,
    "vocabulary": parse_vocabulary,
    "precision": partial(parse_precision, auto=True),
    "experts": partial(parse_experts, auto=True),
    "extra_memory": parse_extra_memory,
}

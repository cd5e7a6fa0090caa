"""From the options of a command, or the arguments of a function of the library, to requests.

Options that were not given are None: the defaults live in `selfspec_tune.requests`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from selfspec_tune.draft import DraftPrecision
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
_WORDS: dict[str, type[StrEnum]] = {"policy": PolicyChoice, "template": Template, "objective": Objective}
_NUMBER = re.compile("[0-9]{1,9}")  # str.isdecimal takes the digits of every script


def search_request(
    *,
    model: str | None = None,
    prompts: str | None = None,
    tasks: list[str] | tuple[str, ...] | None = None,
    out: Path | None = None,
    trials: int | None = None,
    timeout: str | float | None = None,
    strategy: str | None = None,
    ngram: bool | None = None,
    vocabulary: str | None = None,
    precision: str | None = None,
    extra_memory: str | None = None,
    start_from: list[str] | tuple[str, ...] | None = None,
    folder: str = "",
    **others: Any,
) -> SearchRequest:
    """The search that is asked for; ``others`` are fields of the parts of a request. Raises `UsageError`.

    ``folder``: what the default folder's name ends with.
    """
    _check_known("a search", others, ModelOptions, PromptOptions, DraftOptions)
    drafting = _fields_of(DraftOptions, others) | given(vocabulary=parse_vocabulary(vocabulary))
    drafting |= {} if ngram is None else {"ngram": ngram}  # False counts here: lookup is on by default
    drafting |= given(precision=parse_precision(precision, auto=True), extra_memory=parse_extra_memory(extra_memory))
    model_options = ModelOptions(**given(name=model), **_fields_of(ModelOptions, others))
    prompting = given(source=prompts, tasks=tuple(tasks or ())) | _fields_of(PromptOptions, others)
    prompt_options = PromptOptions(**prompting)
    return SearchRequest(
        out=out or default_folder(model_options.name, prompt_options.source, folder),
        model=model_options,
        prompts=prompt_options,
        draft=DraftOptions(**drafting),
        trials=trials,
        timeout_seconds=budget_seconds(trials, timeout),
        strategy=_word(StrategyName, "strategy", strategy or StrategyName.STAGED),
        start_from=tuple(start_from or ()),
    )


def bench_request(
    *,
    model: str | None = None,
    prompts: str | None = None,
    tasks: list[str] | tuple[str, ...] | None = None,
    policy: str | None = None,
    max_draft_tokens: int | None = None,
    exit_threshold: float | None = None,
    ngram: bool | None = None,
    precision: str | None = None,
    uniform_and_random: bool = True,
    **others: Any,
) -> BenchRequest:
    """The bench that is asked for; ``others`` are fields of the parts of a request. Raises `UsageError`."""
    _check_known("a bench", others, ModelOptions, PromptOptions, BenchRequest)
    loading = given(name=model) | _fields_of(ModelOptions, others)
    decoding = given(source=prompts, tasks=tuple(tasks) if tasks else None) | _fields_of(PromptOptions, others)
    drafting = given(policy=policy, max_draft_tokens=max_draft_tokens, exit_threshold=exit_threshold)
    drafting |= given(precision=parse_precision(precision))
    drafting |= {} if ngram is None else {"ngram": ngram}
    return BenchRequest(
        model_overrides=tuple(loading.items()),
        prompt_overrides=tuple(decoding.items()),
        draft_overrides=tuple(_checked(drafting).items()),
        studies=STUDIES,
        uniform_and_random=uniform_and_random,
        **{
            name: others[name]
            for name in others
            if name in BenchRequest.__dataclass_fields__ and others[name] is not None
        },
    )


def _check_known(what: str, options: Mapping[str, Any], *parts: Any) -> None:
    known = [name for part in parts for name in part.__dataclass_fields__]
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"There is no option {name!r} of {what}.{hint}")


def _fields_of(part: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those ``options`` that were given and are fields of ``part``."""
    return _checked(given(**{name: value for name, value in options.items() if name in part.__dataclass_fields__}))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` if those of a few words have one of these. Raises `UsageError`."""
    for name, kind in _WORDS.items():
        if name in options:
            _word(kind, name, options[name])
    return options


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


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given, as plain values; a flag counts only when set."""
    return {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in options.items()
        if value is not None and value is not False
    }


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
    raise UsageError(f"`draft_vocab` {text!r}: expected auto, full, or a positive number of token ids.")


def parse_precision(text: str | None, *, auto: bool = False) -> str | None:
    """The text form of a `DraftPrecision`, checked as far as can be without a model; ``auto`` where it is allowed.

    Raises `UsageError`.
    """
    if text is not None and not (auto and text == "auto"):
        DraftPrecision.parse(text, _MOST_LAYERS)
    return text


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

"""The draft to search with."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from selfspec_tune.checks import check_fields, check_number
from selfspec_tune.draft import DraftSource, PolicyKind
from selfspec_tune.draft.sources import SOURCES, wanted
from selfspec_tune.errors import UsageError

LONGEST_DRAFT = 1024
_THRESHOLD_POLICIES = ("threshold", "adaptive")
_MEMORY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[kmgt]i?b|b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1} | {
    prefix + infix + "b": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for infix, base in (("i", 1024), ("", 1000))
}


@dataclass(frozen=True, slots=True)
class ExtraMemory:
    """What low-precision copies of weights may take beyond the model: a ``share`` of it, or ``num_bytes``."""

    share: float = 0.0
    num_bytes: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

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


def check_limits(max_draft_tokens: int | None, exit_threshold: float | None) -> None:
    """Raise `UsageError` for a longest draft or a threshold, where one is given, that no policy can have."""
    if max_draft_tokens is not None:
        length = f"1 to {LONGEST_DRAFT}"
        check_number("max_draft_tokens", max_draft_tokens, 1, LONGEST_DRAFT, length, whole=True)
    if exit_threshold is not None:
        check_number("exit_threshold", exit_threshold, 0, 1, "a probability, 0 to 1")


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """The draft to search with. ``policy`` is a `PolicyChoice`; ``vocabulary``: auto, full, or a number of token ids.

    ``ngram`` looks tokens up in the context first; ``precision`` is the text form of a
    `DraftPrecision`, whose copies of weights may take ``extra_memory``, or auto: the lowest
    one that the engine has kernels for and whose copies fit, else the model's own. A ``standalone`` draft is what
    other runtimes run: it looks nothing up, covers every token id, at the model's own precision.

    ``experts``: to how many experts a token goes in a mixture; auto: searched; same: as many as in the model.
    """

    policy: str = PolicyChoice.AUTO.value
    max_draft_tokens: int | None = None
    exit_threshold: float | None = None
    vocabulary: str = "auto"
    ngram: bool = True
    precision: str = "auto"
    extra_memory: ExtraMemory = ExtraMemory(share=0.3)
    objective: Objective = Objective.SHARED
    experts: str = "auto"

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
        check_fields(self)
        object.__setattr__(self, "objective", Objective(self.objective))  # the command line has plain values
        if self.objective is Objective.STANDALONE:
            self._check_standalone()
        check_limits(self.max_draft_tokens, self.exit_threshold)
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
                f"{given} has a precision of its own, so `precision` {self.precision} is lost. Leave it out."
            )
        if self.vocabulary not in ("auto", "full"):
            raise UsageError(f"{given} covers all token ids, so `vocabulary` {self.vocabulary} is lost. Leave it out.")
        if self.experts not in ("auto", "same"):
            raise UsageError(f"{given} goes to the model's experts, so `experts` {self.experts} is lost. Leave it out.")
        alone = dict.fromkeys(self.source_choices, False)
        for name, value in {**alone, "precision": "same", "vocabulary": "full", "experts": "same"}.items():
            object.__setattr__(self, name, value)

"""Drafting from the context itself: what followed the last tokens when they occurred before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from selfspec_tune.bounds import only_known, whole
from selfspec_tune.errors import UsageError

_MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class NgramLookup:
    """Look the last ``max_match`` … ``min_match`` tokens up in prompt and output, longest first.

    Where they occurred before, up to ``max_tokens`` tokens that followed their most recent
    occurrence are drafted (prompt lookup decoding, Saxena 2023). That costs no forward pass.

    Where the model drafts instead, each of its passes tries up to ``draft_tokens`` of those tokens
    beside the last one: as many as it agrees with need no pass of their own.
    """

    max_match: int = 4
    min_match: int = 2
    max_tokens: int = 10
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        for name, least in (("max_match", 1), ("min_match", 1), ("max_tokens", 1), ("draft_tokens", 0)):
            whole(f"ngram.{name}", getattr(self, name), least, _MOST_TOKENS)
        if self.min_match > self.max_match:
            raise UsageError(
                f"An n-gram lookup of {self.min_match} to {self.max_match} tokens; expected min_match ≤ max_match."
            )

    def __str__(self) -> str:
        tried = f", {self.draft_tokens} in drafts" if self.draft_tokens else ""
        return f"n-gram {self.min_match}-{self.max_match}, {self.max_tokens} tokens{tried}"

    @property
    def alone(self) -> NgramLookup:
        """The same where the model drafts nothing."""
        return replace(self, draft_tokens=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> NgramLookup:
        """The inverse of `to_dict`; missing fields take defaults. Raises `UsageError`.

        Files from before ``draft_tokens`` were measured without it.
        """
        return cls(**{"draft_tokens": 0, **only_known("ngram", value, cls.__dataclass_fields__)})

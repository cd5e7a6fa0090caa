"""Drafting from the context itself: what followed the last tokens when they occurred before."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from selfspec_tune.errors import UsageError


@dataclass(frozen=True, slots=True)
class NgramLookup:
    """Look the last ``max_match`` … ``min_match`` tokens up in prompt and output, longest first.

    Where they occurred before, up to ``max_tokens`` tokens that followed their most recent
    occurrence are drafted (prompt lookup decoding, Saxena 2023). That costs no forward pass.
    """

    max_match: int = 4
    min_match: int = 2
    max_tokens: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.min_match <= self.max_match:
            raise UsageError(
                f"An n-gram lookup of {self.min_match} to {self.max_match} tokens; expected 1 ≤ min_match ≤ max_match."
            )
        if self.max_tokens < 1:
            raise UsageError(f"An n-gram lookup that drafts {self.max_tokens} tokens; expected at least 1.")

    def __str__(self) -> str:
        return f"n-gram {self.min_match}-{self.max_match}, {self.max_tokens} tokens"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> NgramLookup:
        """The inverse of `to_dict`; unknown fields are ignored, missing ones take defaults."""
        return cls(**{name: int(value[name]) for name in cls.__dataclass_fields__ if name in value})

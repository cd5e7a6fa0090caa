"""What the steps of one draft cost on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of the steps that self-speculative decoding with one draft is made of.

    ``decode`` is one plain step, ``draft`` one draft step, ``verify[k]`` a full pass over
    k + 1 tokens: the last one and k drafted. ``verify[0]`` equals ``decode``.
    """

    decode: float
    draft: float
    verify: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.decode <= 0 or self.draft < 0 or not self.verify or min(self.verify) <= 0:
            raise ValueError(f"{self}: expected positive seconds and at least one verification")

    def verification(self, num_drafted: int) -> float:
        """Seconds to verify ``num_drafted`` tokens; past the longest pass known, on the line of the last two."""
        longest = len(self.verify) - 1
        if num_drafted <= longest:
            return self.verify[num_drafted]
        slope = max(self.verify[-1] - self.verify[-2], 0.0) if longest else 0.0
        return self.verify[-1] + (num_drafted - longest) * slope

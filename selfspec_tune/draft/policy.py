"""When to draft, from what, and when to stop: the settings, and what decoding asks of a policy at work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Protocol

from selfspec_tune.checks import number, numbers, only_known, shown, whole
from selfspec_tune.draft.rounds import Round, Source
from selfspec_tune.errors import UsageError

MOST_DRAFT_TOKENS = 1024  # many more than any draft is right for
LONGEST_SEARCHED = 24  # the longest drafts that pay: one that is right to the end is worth its verification
# Inner bounds of the intervals of a drafted token's probability; finer where most tokens fall.
CONFIDENCE_EDGES = (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.98, 0.995)
_EXIT_THRESHOLD = 0.6
_SHARES = ("exit_threshold", "target_acceptance", "step", "acceptance_momentum", "threshold_momentum")
_MOST_CREDIT = 1000.0  # plain steps


class PolicyKind(StrEnum):
    """When a draft ends, apart from its maximum length."""

    FIXED = "fixed"
    THRESHOLD = "threshold"
    ADAPTIVE = "adaptive"
    COST_AWARE = "cost-aware"


@dataclass(frozen=True, slots=True)
class AcceptancePrior:
    """What is known of a draft's acceptance before a generation begins, say from calibration text.

    ``mean``: share of drafted tokens accepted at positions of any confidence.
    ``rates``: that share in each interval that `CONFIDENCE_EDGES` bounds, of a token's confidence; of its lead (see
    `Certainty`) with ``by_lead``, as searches find it.
    """

    mean: float
    rates: tuple[float, ...]
    by_lead: bool = False

    def __post_init__(self) -> None:
        expected = len(CONFIDENCE_EDGES) + 1
        if len(self.rates) != expected or not all(0 <= p <= 1 for p in (self.mean, *self.rates)):
            raise UsageError(f"{self}: expected a mean and {expected} acceptance rates, all from 0 to 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"mean": self.mean, "by_lead" if self.by_lead else "by_confidence": list(self.rates)}

    @classmethod
    def from_dict(cls, value: Any) -> AcceptancePrior:
        """The inverse of `to_dict`. Raises `UsageError`."""
        known = only_known("prior", value, ("mean", "by_confidence", "by_lead"))
        if len(known) > 2:
            raise UsageError("prior has acceptance rates both by_confidence and by_lead; expected one of them.")
        mean = float(number("prior.mean", known.get("mean"), 0.0, 1.0))
        name = "by_lead" if "by_lead" in known else "by_confidence"
        return cls(mean, numbers(f"prior.{name}", known.get(name)), by_lead=name == "by_lead")


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """Draft length rule.

    ``fixed`` drafts ``max_draft_tokens`` every round. ``threshold`` also stops at the
    first token whose draft probability is below ``exit_threshold`` (that token is still
    verified). ``adaptive`` moves the threshold after each verification by the rule of
    Draft & Verify (Zhang et al., ACL 2024, section 3.3): an exponential mean ``m`` of the
    acceptance rate is held near ``target_acceptance``; the constants are the paper's.
    ``cost-aware`` weighs each token's expected gain against its measured cost and decodes
    plainly where drafting does not pay; its predicted time never exceeds plain decoding's
    by more than the share ``max_loss`` and ``credit`` plain steps. ``prior`` is what it
    believes of the draft at first (None: acceptance equals a token's lead).
    """

    kind: PolicyKind = PolicyKind.THRESHOLD
    max_draft_tokens: int = 6
    exit_threshold: float = _EXIT_THRESHOLD
    target_acceptance: float = 0.9
    step: float = 0.01
    acceptance_momentum: float = 0.5
    threshold_momentum: float = 0.9
    max_loss: float = 0.02
    credit: float = 1.0
    prior: AcceptancePrior | None = None

    def __post_init__(self) -> None:
        whole("max_draft_tokens", self.max_draft_tokens, 1, MOST_DRAFT_TOKENS)
        for name in _SHARES:
            number(name, getattr(self, name), 0.0, 1.0)
        if number("max_loss", self.max_loss, 0.0, 1.0) == 1.0:
            raise UsageError(f"max_loss is {self.max_loss}; expected a share from 0 to below 1.")
        number("credit", self.credit, 0.0, _MOST_CREDIT)

    @property
    def needs_probability(self) -> bool:
        """Whether drafting must compute each drafted token's probability."""
        return self.kind is not PolicyKind.FIXED

    def __str__(self) -> str:
        has_exit = self.kind is not PolicyKind.COST_AWARE or self.exit_threshold != _EXIT_THRESHOLD
        rule = f", exit {exact(self.exit_threshold)}" if has_exit else ""
        others = "".join(f", {name} {_text(value)}" for name, value in self._unusual())
        return f"{self.kind} {self.max_draft_tokens}{rule}{others}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; settings with a default are written where they differ from it."""
        written = {"policy": self.kind.value, "max_draft_tokens": self.max_draft_tokens}
        unusual = {name: value.to_dict() if name == "prior" else value for name, value in self._unusual()}
        return written | {"exit_threshold": self.exit_threshold} | unusual

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> DraftPolicy:
        """The inverse of `to_dict`; unknown fields are ignored, missing ones take defaults."""
        known: dict[str, Any] = {f.name: value[f.name] for f in fields(cls) if value.get(f.name) is not None}
        if "prior" in known:
            known["prior"] = AcceptancePrior.from_dict(known["prior"])
        kind = value.get("policy", PolicyKind.THRESHOLD)
        if kind not in list(PolicyKind):
            raise UsageError(f"policy is {shown(kind)}; expected one of {', '.join(PolicyKind)}.")
        return cls(kind=PolicyKind(kind), **known)

    def _unusual(self) -> Iterator[tuple[str, Any]]:
        """Further settings that differ from their defaults."""
        for field in fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default:
                yield field.name, value


def exact(number: float) -> str:
    """The shortest text of a number that no other number shares."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _text(value: float | AcceptancePrior) -> str:
    if isinstance(value, AcceptancePrior):
        return " ".join([*(["by lead"] if value.by_lead else []), *(exact(p) for p in (value.mean, *value.rates))])
    return exact(value)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round drafts: from which source, by name, and at most how many tokens (none when plain)."""

    source: str
    num_tokens: int = 0


PLAIN = Plan(Source.PLAIN)


class PolicyState(Protocol):
    """A policy within one generation.

    It sees only how sure the draft was of its tokens, what a source found, and what was
    accepted before; every drafted token is verified. So it may decide as it likes: the
    output stays exact.

    Attributes:
        needs_probability: whether it decides by how sure the draft is at all.
        uses_lead: whether that is a token's lead, where the draft takes the most probable one, not its probability.
    """

    needs_probability: bool
    uses_lead: bool

    def begin(self, room: int, num_found: int = 0, match_length: int = 0, source: str = Source.PLAIN) -> Plan:
        """Plan a round that may draft up to ``room`` tokens.

        The ``source`` of that name found ``num_found`` tokens after a match of ``match_length``.
        """

    def wants_more(self, num_drafted: int, probability: float, num_ahead: int = 0) -> bool:
        """Whether the model should draft on after ``num_drafted`` tokens, the last one at ``probability``, or its lead.

        ``num_ahead`` further tokens are known already, from the same pass.
        """

    def num_guesses(self, num_found: int, match_length: int, source: str = Source.PLAIN) -> int:
        """How many of ``num_found`` tokens, found as for `begin`, a draft pass should try."""

    def update(self, round_: Round, agreed: int = 0) -> None:
        """Learn what the round has become.

        ``agreed``: how many of the tokens that the source found, taken or not, were those
        that the round gave (its accepted ones and one more), up to the first difference.
        """

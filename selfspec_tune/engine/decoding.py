"""Autoregressive and self-speculative decoding over a `Runner`, and the raw record that it leaves.

Both loops share prefill, sampling and stopping, so that a pair of runs differs only in
drafting and verification.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from selfspec_tune.draft import Draft, Round
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.decisions import fresh_state
from selfspec_tune.draft.rounds import PLAIN_ROUND
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.engine.drafting import Drafter
from selfspec_tune.engine.model_source import Drafted
from selfspec_tune.engine.runner import Runner, Scores, Want, check_differ, check_logits, make_room, scored
from selfspec_tune.engine.runners.penalty import penalised
from selfspec_tune.engine.sampling import Sampler, accept
from selfspec_tune.errors import NonFiniteError

StopReason = Literal["eos", "length"]


@dataclass(slots=True)
class RawGeneration:
    """Token ids and what producing them took; rates are derived from it later.

    Plain decoding has no ``rounds``. Times are seconds of synchronised work; ``verify_seconds``
    is the time in full-model forward passes after prefill, plain decode steps included.
    ``decode_seconds`` is everything after prefill, overhead included.
    ``prefilled`` tokens of the prompt were run: all but those that a cache held.
    ``first_tokens`` came out of the prefill: one, or more where drafts were verified in the same pass.
    """

    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_reason: StopReason = "length"
    first_tokens: int = 1
    prefilled: int = 0

    @property
    def total_seconds(self) -> float:
        """Prefill and decode together."""
        return self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a generation ends: after ``max_new_tokens``, or with (and including) an end-of-sequence token."""

    max_new_tokens: int
    eos_token_ids: frozenset[int] = frozenset()


class _Output:
    """Collects tokens until a limit is met; what a round yields past it is dropped."""

    def __init__(self, limits: Limits, record: RawGeneration) -> None:
        self._limits = limits
        self.generation = record

    @property
    def remaining(self) -> int:
        return self._limits.max_new_tokens - len(self.generation.tokens)

    def is_eos(self, token: int) -> bool:
        return token in self._limits.eos_token_ids

    def emit(self, tokens: Sequence[int]) -> bool:
        """Append ``tokens``; True when the generation has ended."""
        for token in tokens[: self.remaining]:
            self.generation.tokens.append(token)
            if self.is_eos(token):
                self.generation.stop_reason = "eos"
                return True
        return self.remaining == 0


@dataclass(frozen=True, slots=True)
class RoundTokens:
    """A round with the ``tokens`` that it gave, without those past a limit, and those ``drafted``.

    The prefill's own token and each of plain decoding come as a plain round.
    """

    tokens: list[int]
    drafted: Sequence[int] = ()
    round: Round = PLAIN_ROUND


def autoregressive(runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler) -> RawGeneration:
    """Decode one token per full forward pass: the baseline of every pair."""
    record = RawGeneration()
    for _ in plain_rounds(runner, prompt, limits, sampler, record):
        pass
    return record


def self_speculative(
    runner: Runner,
    prompt: Sequence[int],
    limits: Limits,
    sampler: Sampler,
    draft: Draft,
    costs: StepCosts | None = None,
    *,
    samples_drafts: bool = True,
) -> RawGeneration:
    """Decode by drafting cheaply, by the model in part or from the context, and verifying in one full pass.

    The output equals `autoregressive`'s: token for token when greedy, in distribution
    when sampling (Draft & Verify, Zhang et al., ACL 2024, algorithm 1). Raises ValueError
    for a cost-aware policy without the ``costs`` of its steps.

    Where the target samples, so does the draft with ``samples_drafts``, and a token is accepted by the ratio of both
    probabilities. Without, the draft takes its most probable token, accepted as often as the target samples it: what
    servers do.
    """
    record = RawGeneration()
    rounds = speculative_rounds(runner, prompt, limits, sampler, draft, costs, record, samples_drafts=samples_drafts)
    for _ in rounds:
        pass
    return record


def plain_rounds(
    runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler, record: RawGeneration, *, known: int = 0
) -> Generator[RoundTokens]:
    """`autoregressive` token by token; ``record`` is filled as they come, without the time that their reader takes.

    ``known``: how many of the prompt's first tokens are in the runner's cache and need not be run again.
    """
    output = _Output(limits, record)
    runner, token, clock = _prefill(runner, prompt, limits, sampler, record, known)
    want = _wanted(sampler)
    ended = output.emit([token])
    yield from clock.paused(RoundTokens([token]))
    while not ended:
        token = _pick(runner, runner.forward([token], want=want), sampler)
        ended = output.emit([token])
        if ended:
            runner.synchronize()
        record.decode_seconds = record.verify_seconds = clock.seconds
        yield from clock.paused(RoundTokens([token]))


def speculative_rounds(
    runner: Runner,
    prompt: Sequence[int],
    limits: Limits,
    sampler: Sampler,
    draft: Draft,
    costs: StepCosts | None,
    record: RawGeneration,
    *,
    samples_drafts: bool = True,
    known: int = 0,
) -> Generator[RoundTokens]:
    """`self_speculative` round by round; ``record`` and ``known`` as in `plain_rounds`."""
    output = _Output(limits, record)
    policy = fresh_state(draft.policy, costs, sources=draft.sources, model_drafts=draft.model_drafts)
    runner.set_draft(draft)
    runner, token, clock = _prefill(runner, prompt, limits, sampler, record, known)
    drawn_by = sampler if samples_drafts and not sampler.greedy else None
    drafter = Drafter(runner, draft.sources, policy, drawn_by, output.is_eos, [*prompt, token])
    ended = output.emit([token])
    yield from clock.paused(RoundTokens([token]))
    while not ended:
        begun = perf_counter()
        drafted = drafter.draft(token, output.remaining - 1)
        drafted_at = perf_counter()
        verified = runner.length
        num_accepted, token = _verified(runner, token, drafted, sampler)
        runner.rewind(verified + num_accepted + 1)
        record.draft_seconds += drafted_at - begun
        record.verify_seconds += perf_counter() - drafted_at
        round_ = drafted.round(num_accepted)
        record.rounds.append(round_)
        tokens = [*drafted.tokens[:num_accepted], token]
        drafter.learn(round_, tokens)
        num_before = len(record.tokens)
        ended = output.emit(tokens)
        record.decode_seconds = clock.seconds
        yield from clock.paused(RoundTokens(record.tokens[num_before:], drafted.tokens, round_))


class _Clock:
    """Seconds since the prefill ended, but for those that a reader of rounds took."""

    def __init__(self) -> None:
        self.begun = perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self.begun

    def paused(self, given: RoundTokens) -> Generator[RoundTokens]:
        """Give ``given`` to the reader, and stand still until the next is asked for."""
        begun = perf_counter()
        yield given
        self.begun += perf_counter() - begun


def _prefill(
    runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler, record: RawGeneration, known: int
) -> tuple[Runner, int, _Clock]:
    """Run the prompt; the runner to go on with, the first token, and a clock from there on.

    Raises `NonFiniteError` where the logits after the prompt are no numbers, or all the same: once a generation, for
    every runner gives these.
    """
    known = make_room(runner, len(prompt) + limits.max_new_tokens, min(known, len(prompt) - 1))
    runner = penalised(runner, sampler.repetition_penalty, prompt[:known])
    runner.synchronize()
    begun = perf_counter()
    logits = runner.forward(prompt[known:], last_only=True).logits
    token = _pick(runner, scored(logits, _wanted(sampler), runner, prompt), sampler)
    record.prefill_seconds = perf_counter() - begun
    record.prefilled = len(prompt) - known
    check_differ(logits, runner)  # untimed
    return runner, token, _Clock()


def _wanted(sampler: Sampler) -> Want:
    """What choosing the model's next token takes."""
    return Want.TOKENS if sampler.greedy else Want.LOGITS


def _pick(runner: Runner, scores: Scores, sampler: Sampler) -> int:
    """The token after the runner's last pass, which was over one position or gave the last alone."""
    if sampler.greedy:
        return scores.tokens[0]
    check_logits(scores.logits, runner)
    return sampler.draw(sampler.probabilities(scores.logits[0]))


def _verified(runner: Runner, token: int, drafted: Drafted, sampler: Sampler) -> tuple[int, int]:
    """Run the last token and the drafts: how many of these are accepted, and the token after them.

    A draft may lead to what is no number. Where that reaches the positions before it, as through a mask that
    multiplies with 0, the last token runs again without the drafts: what the model makes of it alone counts.
    """
    before = runner.length
    try:
        scores = runner.forward([token, *drafted.tokens], want=_wanted(sampler))
        return _accepted(runner, scores, drafted, sampler)
    except NonFiniteError:
        if not drafted.tokens:
            raise
    runner.rewind(before)
    return 0, _pick(runner, runner.forward([token], want=_wanted(sampler)), sampler)


def _accepted(runner: Runner, scores: Scores, drafted: Drafted, sampler: Sampler) -> tuple[int, int]:
    """By the runner's pass over the last token and the drafts: how many are accepted, and the token after them."""
    if sampler.greedy:
        num_accepted = common_prefix(drafted.tokens, scores.tokens)
        return num_accepted, scores.tokens[num_accepted]
    distributions = drafted.distributions or [None] * len(drafted.tokens)  # none: they were not sampled
    targets = sampler.probabilities(scores.logits).nan_to_num_(1.0)  # the check below finds those that count
    num_accepted, token = accept(sampler, drafted.tokens, distributions, targets)
    check_logits(scores.logits, runner, num_accepted + 1)
    return num_accepted, token

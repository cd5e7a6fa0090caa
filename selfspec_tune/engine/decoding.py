"""Autoregressive and self-speculative decoding over a `Runner`.

Both loops share prefill, sampling and stopping, so that a pair of runs differs only in
drafting and verification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, PolicyState
from selfspec_tune.engine.generation import Generation
from selfspec_tune.engine.runner import DraftsOnDevice, Runner
from selfspec_tune.engine.sampling import Sampler, accept


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a generation ends: after ``max_new_tokens``, or with (and including) an end-of-sequence token."""

    max_new_tokens: int
    eos_token_ids: frozenset[int] = frozenset()


class _Output:
    """Collects tokens until a limit is met; what a round yields past it is dropped."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.generation = Generation()

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


def autoregressive(runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler) -> Generation:
    """Decode one token per full forward pass: the baseline of every pair."""
    output = _Output(limits)
    record = output.generation
    token, started = _prefill(runner, prompt, limits, sampler, record)
    ended = output.emit([token])
    while not ended:
        logits = runner.decode(token)
        token = _pick(logits, sampler)
        ended = output.emit([token])
    runner.synchronize()
    record.decode_seconds = record.verify_seconds = perf_counter() - started
    return record


def self_speculative(
    runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler, draft: Draft
) -> Generation:
    """Decode by drafting with sub-layers skipped and verifying in one full pass.

    The output equals `autoregressive`'s: token for token when greedy, in distribution
    when sampling (Draft & Verify, Zhang et al., ACL 2024, algorithm 1).
    """
    output = _Output(limits)
    record = output.generation
    runner.set_draft(draft)
    policy = draft.policy.start()
    token, started = _prefill(runner, prompt, limits, sampler, record)
    ended = output.emit([token])
    while not ended:
        begun = perf_counter()
        drafted, distributions = _draft(runner, token, policy, sampler, output)
        drafted_at = perf_counter()
        num_accepted, token = _verify(runner, token, drafted, distributions, sampler)
        record.draft_seconds += drafted_at - begun
        record.verify_seconds += perf_counter() - drafted_at
        record.drafted.append(len(drafted))
        record.accepted.append(num_accepted)
        policy.update(num_accepted, len(drafted))
        ended = output.emit([*drafted[:num_accepted], token])
    record.decode_seconds = perf_counter() - started
    return record


def _prefill(
    runner: Runner, prompt: Sequence[int], limits: Limits, sampler: Sampler, record: Generation
) -> tuple[int, float]:
    """Run the prompt; the first token and the moment that decoding starts."""
    runner.reserve(len(prompt) + limits.max_new_tokens)
    runner.synchronize()
    begun = perf_counter()
    token = _pick(runner.prefill(prompt), sampler)
    started = perf_counter()
    record.prefill_seconds = started - begun
    return token, started


def _pick(logits: Tensor, sampler: Sampler) -> int:
    return int(logits.argmax()) if sampler.greedy else sampler.draw(sampler.probabilities(logits))


def _draft(
    runner: Runner, token: int, policy: PolicyState, sampler: Sampler, output: _Output
) -> tuple[list[int], list[Tensor]]:
    """Draft until the policy stops, an end-of-sequence token, or all but one of the remaining tokens.

    Returns the drafted tokens and, when sampling, the distributions that they were drawn from.
    """
    verified = runner.length
    drafted: list[int] = []
    distributions: list[Tensor] = []
    probability = 1.0
    if sampler.greedy and not policy.policy.needs_probability and isinstance(runner, DraftsOnDevice):
        count = min(output.remaining - 1, policy.policy.max_draft_tokens)
        drafted = _through_eos(runner.draft_greedy(token, count)[0], output) if count > 0 else []
        runner.rewind(verified)
        return drafted, distributions
    while len(drafted) < output.remaining - 1 and policy.wants_more(len(drafted), probability):
        if sampler.greedy:
            token, probability = _draft_greedily(runner, token, policy)
        else:
            distribution = sampler.probabilities(runner.draft_step(token))
            token = sampler.draw(distribution)
            distributions.append(distribution)
            probability = float(distribution[token])
        drafted.append(token)
        if output.is_eos(token):
            break
    runner.rewind(verified)
    return drafted, distributions


def _draft_greedily(runner: Runner, token: int, policy: PolicyState) -> tuple[int, float]:
    """The most probable token after ``token``, and its probability where the policy needs it."""
    if isinstance(runner, DraftsOnDevice):
        tokens, probabilities = runner.draft_greedy(token, 1)
        return tokens[0], probabilities[0]
    logits = runner.draft_step(token)
    token = int(logits.argmax())
    if not policy.policy.needs_probability:
        return token, 1.0
    return token, float(torch.exp(logits[token].float() - logits.float().logsumexp(-1)))


def _through_eos(tokens: list[int], output: _Output) -> list[int]:
    """``tokens`` up to and including the first end of sequence."""
    end = next((i + 1 for i, token in enumerate(tokens) if output.is_eos(token)), len(tokens))
    return tokens[:end]


def _verify(
    runner: Runner, token: int, drafted: list[int], distributions: list[Tensor], sampler: Sampler
) -> tuple[int, int]:
    """One full pass over the last token and the drafts; how many are accepted, and the token after them."""
    verified = runner.length
    logits = runner.verify([token, *drafted])
    if sampler.greedy:
        targets = logits.argmax(-1).tolist()
        matches = (d == t for d, t in zip(drafted, targets, strict=False))
        num_accepted = next((i for i, same in enumerate(matches) if not same), len(drafted))
        following = int(targets[num_accepted])
    else:
        num_accepted, following = accept(sampler, drafted, distributions, sampler.probabilities(logits))
    runner.rewind(verified + num_accepted + 1)
    return num_accepted, following

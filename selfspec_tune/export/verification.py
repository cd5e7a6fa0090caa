"""Whether an exported draft computes in its runtime what the skip set means, and drafts as often right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.skip_set import SkipSet

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel

NUM_PROMPTS, NUM_TOKENS = 4, 48
EXACT_LOGPROB = 1e-3  # in float32
_MOSTLY = 0.95  # of tokens and counts, where both sides round differently


@dataclass(frozen=True, slots=True)
class Said:
    """What a runtime made of a prompt: greedy ``tokens``, their ``logprobs`` where it gives them, and its counts."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    drafted: int = 0
    accepted: int = 0


class Runtime(Protocol):
    """A runtime with the target and the exported draft.

    ``first_token_is_plain``: whether the first token of an answer comes from reading the prompt, before any draft, as
    in our own loop; only then can drafted and accepted tokens be told in advance.
    """

    name: str
    first_token_is_plain: bool

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> Said:
        """The draft by itself, as a model."""

    def plain(self, prompt: Sequence[int], num_tokens: int) -> Said:
        """The target by itself."""

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> Said:
        """The target with the draft."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a runtime's answers to some prompts say, beside our own engine's in float32.

    Attributes:
        tokens: of the draft alone, over all prompts; ``equal_tokens`` of them are our choice too.
        logprob_difference: the largest along them; None where the runtime gives none.
        same_texts: prompts whose text by speculation is the target's own.
        drafted: and ``accepted``, by the runtime's counts; ``expected_…``: by ours, None where its loop is another.
    """

    runtime: str
    prompts: int
    tokens: int
    equal_tokens: int
    logprob_difference: float | None
    same_texts: int
    drafted: int
    accepted: int
    expected_drafted: int | None
    expected_accepted: int | None

    @property
    def verdict(self) -> str:
        """exact; close, as where the runtime computes with other roundings than ours; or different."""
        counts = self.drafted, self.accepted
        expected = counts
        if self.expected_drafted is not None and self.expected_accepted is not None:
            expected = self.expected_drafted, self.expected_accepted
        is_whole = self.equal_tokens == self.tokens and self.same_texts == self.prompts and counts == expected
        if is_whole and (self.logprob_difference or 0.0) <= EXACT_LOGPROB:
            return "exact"
        few = 1 - _MOSTLY
        is_near = self.equal_tokens >= _MOSTLY * self.tokens and abs(_rate(*counts) - _rate(*expected)) <= few
        return "close" if is_near and 2 * self.same_texts > self.prompts else "different"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


def _rate(drafted: int, accepted: int) -> float:
    return accepted / drafted if drafted else 0.0


def verify(runtime: Runtime, loaded: LoadedModel, skip_set: SkipSet, draft_tokens: int) -> Verification:
    """Have ``runtime`` answer some prompts of the built-in set, and ``loaded``, the target in float32, the same."""
    prompts = _prompts(loaded)
    equal = tokens = same = drafted = accepted = expected_drafted = expected_accepted = 0
    differences = []
    for prompt in prompts:
        alone = runtime.draft_alone(prompt, NUM_TOKENS)
        choices, logprobs = _along(loaded, skip_set, prompt, alone.tokens)
        tokens += len(alone.tokens)
        equal += sum(ours == theirs for ours, theirs in zip(choices, alone.tokens, strict=True))
        differences += [abs(a - b) for a, b in zip(logprobs, alone.logprobs, strict=False)]
        together = runtime.speculative(prompt, NUM_TOKENS)
        same += together.tokens == runtime.plain(prompt, NUM_TOKENS).tokens
        drafted, accepted = drafted + together.drafted, accepted + together.accepted
        if runtime.first_token_is_plain:
            ours = expected_counts(loaded, skip_set, prompt, len(together.tokens), draft_tokens)
            expected_drafted, expected_accepted = expected_drafted + ours[0], expected_accepted + ours[1]
    return Verification(
        runtime.name,
        len(prompts),
        tokens,
        equal,
        max(differences) if differences else None,
        same,
        drafted,
        accepted,
        expected_drafted if runtime.first_token_is_plain else None,
        expected_accepted if runtime.first_token_is_plain else None,
    )


def expected_counts(
    loaded: LoadedModel, skip_set: SkipSet, prompt: Sequence[int], num_tokens: int, draft_tokens: int
) -> tuple[int, int]:
    """Drafted and accepted tokens of a server's loop: so many tokens drafted a round, fewer where the answer ends.

    As llama.cpp and transformers do it: the draft reads every token itself, and one token is left to the target.
    """
    from selfspec_tune.engine import Limits, Sampler, choose_runner, self_speculative
    from selfspec_tune.engine.standalone import StandaloneRunner

    def told(text: str) -> None:
        """Nobody times this."""

    runner = StandaloneRunner(choose_runner(loaded, "auto", told), choose_runner(loaded, "auto", told))
    draft = Draft(skip_set, DraftPolicy(PolicyKind.FIXED, draft_tokens))
    made = self_speculative(runner, prompt, Limits(num_tokens), Sampler(), draft)
    return sum(made.drafted), sum(made.accepted)


def _prompts(loaded: LoadedModel) -> list[list[int]]:
    """One prompt of each of the first tasks of the built-in set."""
    from selfspec_tune.prompts import load_prompts, render

    by_task = {prompt.task: prompt for prompt in reversed(load_prompts("builtin"))}
    chosen = [by_task[task] for task in sorted(by_task)[:NUM_PROMPTS]]
    return [render(prompt, loaded.tokenizer) for prompt in chosen]


def _along(
    loaded: LoadedModel, skip_set: SkipSet, prompt: Sequence[int], tokens: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Our choice at each of ``tokens``, and the log-probability of theirs, by the model without what is skipped."""
    import torch

    from selfspec_tune.engine.reference import skipped

    text = torch.tensor([[*prompt, *tokens]], device=loaded.device)
    with torch.inference_mode(), skipped(loaded, skip_set):
        model: Any = loaded.model
        logits = model(text, use_cache=False, logits_to_keep=len(tokens) + 1).logits[0, :-1].float()
    picked = torch.tensor(tokens, device=logits.device)
    logprobs = logits.log_softmax(-1).gather(-1, picked[:, None])[:, 0]
    return logits.argmax(-1).tolist(), logprobs.tolist()

"""Whether an exported draft computes in its runtime what the skip set means, and drafts as often right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.rounds import num_accepted, num_drafted
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.export.formats.gguf import FILE
from selfspec_tune.export.runtimes.completion import NotComparableError, RuntimeAnswer
from selfspec_tune.files import write_json_atomic
from selfspec_tune.requests import DraftFormat

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel

NUM_PROMPTS, NUM_TOKENS = 4, 48
EXACT_LOGPROB = 1e-3  # in float32
_MOSTLY = 0.95  # of tokens and counts, where both sides round differently


class Runtime(Protocol):
    """A runtime with the target and the exported draft.

    ``rounds``: whether it computes several tokens at once with other roundings than one, as of quantised weights, so
    that its text by speculation need not be its plain text.
    """

    name: str
    rounds: bool

    def draft_alone(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        """The draft by itself, as a model; nothing where it is none."""

    def plain(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        """The target by itself."""

    def speculative(self, prompt: Sequence[int], num_tokens: int) -> RuntimeAnswer:
        """The target with the draft."""


class Simulation(Protocol):
    """What a runtime's loop should count on a prompt."""

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        """Drafted and accepted tokens on the way to the runtime's ``answer``, which may have ``budget`` tokens."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a runtime's answers to some prompts say, beside our own engine's in float32.

    Attributes:
        left_out: prompts to which the runtime's answer could not be compared token by token.
        tokens: of the draft alone, over all prompts; ``equal_tokens`` of them are our choice too.
        logprob_difference: the largest along them; None where the runtime gives none.
        same_texts: prompts whose text by speculation is the target's own; all are, but in a runtime that ``rounds``.
        drafted: and ``accepted``, by the runtime's counts; ``expected_…``: by our simulation of its loop.
    """

    runtime: str
    prompts: int
    tokens: int
    equal_tokens: int
    logprob_difference: float | None
    same_texts: int
    drafted: int
    accepted: int
    expected_drafted: int
    expected_accepted: int
    left_out: int = 0
    rounds: bool = False

    @property
    def verdict(self) -> str:
        """exact; close, as where the runtime computes with other roundings than ours; or different."""
        counts = self.drafted, self.accepted
        expected = self.expected_drafted, self.expected_accepted
        is_whole = self.equal_tokens == self.tokens and self.same_texts == self.prompts and counts == expected
        if is_whole and (self.logprob_difference or 0.0) <= EXACT_LOGPROB:
            return "exact"
        few = 1 - _MOSTLY
        is_near = self.equal_tokens >= _MOSTLY * self.tokens and abs(_rate(*counts) - _rate(*expected)) <= few
        is_own = self.rounds or 2 * self.same_texts > self.prompts
        return "close" if is_near and is_own else "different"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


def _rate(drafted: int, accepted: int) -> float:
    return accepted / drafted if drafted else 0.0


def verify(
    runtime: Runtime, loaded: LoadedModel, skip_set: SkipSet, simulate: Simulation, *, num_prompts: int = NUM_PROMPTS
) -> Verification:
    """Have ``runtime`` answer some prompts of the built-in set, and ``loaded``, the target in float32, the same."""
    prompts, left_out = _prompts(loaded, num_prompts), 0
    equal = tokens = same = drafted = accepted = expected_drafted = expected_accepted = 0
    differences = []
    for prompt in prompts:
        try:
            alone, plain, together = (
                answer(prompt, NUM_TOKENS) for answer in (runtime.draft_alone, runtime.plain, runtime.speculative)
            )
        except NotComparableError:
            left_out += 1
            continue
        choices, logprobs = along(loaded, skip_set, prompt, alone.tokens)
        tokens += len(alone.tokens)
        equal += sum(ours == theirs for ours, theirs in zip(choices, alone.tokens, strict=True))
        differences += [abs(a - b) for a, b in zip(logprobs, alone.logprobs, strict=False)]
        same += together.tokens == plain.tokens
        drafted, accepted = drafted + together.drafted, accepted + together.accepted
        ours = simulate(prompt, together.tokens, NUM_TOKENS)
        expected_drafted, expected_accepted = expected_drafted + ours[0], expected_accepted + ours[1]
    if left_out == len(prompts):
        raise SelfSpecError(f"{runtime.name} gave no answer that can be compared token by token.")
    return Verification(
        runtime.name,
        len(prompts) - left_out,
        tokens,
        equal,
        max(differences) if differences else None,
        same,
        drafted,
        accepted,
        expected_drafted,
        expected_accepted,
        left_out,
        runtime.rounds,
    )


def server_loop(
    loaded: LoadedModel, skip_set: SkipSet, draft_tokens: int, *, first_is_plain: bool, is_bounded: bool = True
) -> Simulation:
    """The loop of a server with a draft model, along the server's own answer, whose roundings may differ from ours.

    The draft reads every token itself. ``first_is_plain``: whether reading the prompt gives a first token, as in
    llama.cpp; transformers drafts before it has read the prompt. ``is_bounded``: whether fewer tokens are drafted where
    the budget ends.
    """
    from selfspec_tune.draft.source import common_prefix
    from selfspec_tune.engine import choose_runner
    from selfspec_tune.engine.runner import Want, prefill
    from selfspec_tune.engine.runners.standalone import StandaloneRunner

    runner = StandaloneRunner.of(choose_runner(loaded, "auto", _untold), loaded)
    draft = Draft(skip_set, DraftPolicy(PolicyKind.FIXED, draft_tokens))

    def simulate(prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        if not answer:
            return 0, 0
        runner.reserve(len(prompt) + budget + draft_tokens + 1)
        runner.set_draft(draft)
        read = prompt if first_is_plain else prompt[:-1]
        prefill(runner, read)
        token, produced = (answer[0], 1) if first_is_plain else (prompt[-1], 0)
        drafted = accepted = 0
        while produced < len(answer):
            start, room = runner.length, draft_tokens
            if is_bounded:
                room = min(room, budget - produced - 1)
            tokens = runner.draft_ahead(token, room)
            runner.rewind(start)
            targets = runner.forward([token, *tokens], want=Want.TOKENS).tokens
            said = answer[produced : produced + len(targets)]
            targets = [*said, *targets[len(said) :]]  # past its end, our own
            agreed = common_prefix(tokens, targets)
            runner.rewind(start + agreed + 1)
            token, produced = targets[agreed], produced + agreed + 1
            drafted, accepted = drafted + len(tokens), accepted + agreed
        return drafted, accepted

    return simulate


def shared_loop(loaded: LoadedModel, draft: Draft) -> Simulation:
    """Our own loop, in which the draft shares the model's cache."""
    from selfspec_tune.engine import Limits, Sampler, choose_runner, self_speculative

    runner = choose_runner(loaded, "auto", _untold)

    def simulate(prompt: Sequence[int], answer: Sequence[int], budget: int) -> tuple[int, int]:
        made = self_speculative(runner, prompt, Limits(budget), Sampler(), draft)
        return num_drafted(made.rounds), num_accepted(made.rounds)

    return simulate


def _untold(text: str) -> None:
    """Notices about speed: nobody times this."""


def _prompts(loaded: LoadedModel, count: int) -> list[list[int]]:
    """One prompt of each of the first tasks of the built-in set."""
    from selfspec_tune.prompts import load_prompts, render

    by_task = {prompt.task: prompt for prompt in reversed(load_prompts("builtin"))}
    chosen = [by_task[task] for task in sorted(by_task)[:count]]
    return [render(prompt, loaded.tokenizer) for prompt in chosen]


def along(
    loaded: LoadedModel, skip_set: SkipSet, prompt: Sequence[int], tokens: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Our choice at each of ``tokens``, and the log-probability of theirs, by the model without what is skipped."""
    import torch

    from selfspec_tune.engine.runners.reference import skipped
    from selfspec_tune.models.loaded import keep_logits

    text = torch.tensor([[*prompt, *tokens]], device=loaded.device)
    with torch.inference_mode(), skipped(loaded, skip_set):
        model: Any = loaded.model
        kept = len(tokens) + 1
        logits = model(text, use_cache=False, **keep_logits(model, kept)).logits[0, -kept:-1].float()
    picked = torch.tensor(tokens, device=logits.device)
    logprobs = logits.log_softmax(-1).gather(-1, picked[:, None])[:, 0]
    return logits.argmax(-1).tolist(), logprobs.tolist()


def require_runtime(format_: DraftFormat) -> None:
    """Raises `UsageError`, saying how to install it, where the runtime that verifies the format is not installed."""
    if format_ is DraftFormat.GGUF:
        from selfspec_tune.export.runtimes.llamacpp import library

        library()


def verify_export(folder: Path, manifest: dict[str, Any], manifest_file: str) -> Verification:
    """Run the export in ``folder``; what came out is also kept in its manifest.

    Raises `UsageError` where the runtime is not installed, saying how to install it, and what loading the target or
    the draft raises.
    """
    from selfspec_tune.models import load_model

    target = manifest["gguf"] or manifest["model"]
    revision = None if manifest["gguf"] else manifest.get("revision")
    loaded = load_model(target, dtype="float32", device="cpu", revision=revision)
    skip_set = SkipSet(loaded.num_layers, *(tuple(manifest["skip"][kind]) for kind in ("attention", "mlp")))
    runtime, simulation = _runtime(DraftFormat(manifest["format"]), loaded, target, folder, manifest, skip_set)
    found = verify(runtime, loaded, skip_set, simulation)
    write_json_atomic(folder / manifest_file, {**manifest, "verified": found.to_dict()})
    return found


def _runtime(
    format_: DraftFormat,
    loaded: LoadedModel,
    target: str,
    folder: Path,
    manifest: dict[str, Any],
    skip_set: SkipSet,
) -> tuple[Runtime, Simulation]:
    tokens = manifest["draft_tokens"]
    if format_ is DraftFormat.GGUF:
        from selfspec_tune.export.runtimes.llamacpp import LlamaCppPair

        pair = LlamaCppPair(Path(target), folder / FILE, tokens)
        return pair, server_loop(loaded, skip_set, tokens, first_is_plain=True)
    from selfspec_tune.export.runtimes.hf import AssistedGeneration, CustomGeneration

    if format_ is DraftFormat.TRANSFORMERS_GENERATE:
        carried = manifest["settings"]
        policy = DraftPolicy(PolicyKind.THRESHOLD, carried["max_draft_tokens"], carried["exit_threshold"])
        return CustomGeneration(loaded, folder), shared_loop(
            loaded, Draft(skip_set, policy, vocabulary=carried["vocabulary"])
        )
    assisted = AssistedGeneration(loaded, folder, tokens, has_own_code=format_ is DraftFormat.NAS)
    return assisted, server_loop(loaded, skip_set, tokens, first_is_plain=False)

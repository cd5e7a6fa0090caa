"""Whether an exported draft computes in its runtime what the skip set means, and drafts as often right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.export.formats import export_format
from selfspec_tune.export.runtimes.completion import NotComparableError, Runtime
from selfspec_tune.export.simulation import Simulation
from selfspec_tune.results import MANIFEST, ExportManifest, Verification

if TYPE_CHECKING:
    from selfspec_tune.models import LoadedModel

NUM_PROMPTS, NUM_TOKENS = 4, 48


def verify(
    runtime: Runtime,
    loaded: LoadedModel,
    skip_set: SkipSet,
    simulate: Simulation,
    *,
    experts: int | None = None,
    num_prompts: int = NUM_PROMPTS,
) -> Verification:
    """Have ``runtime`` answer some prompts of the built-in set, and ``loaded``, the target in float32, the same.

    ``experts``: to how many experts a token goes in the draft; None: to as many as in the model.
    """
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
        choices, logprobs = along(loaded, skip_set, prompt, alone.tokens, experts)
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
        runtime=runtime.name,
        prompts=len(prompts) - left_out,
        tokens=tokens,
        equal_tokens=equal,
        logprob_difference=max(differences) if differences else None,
        same_texts=same,
        drafted=drafted,
        accepted=accepted,
        expected_drafted=expected_drafted,
        expected_accepted=expected_accepted,
        left_out=left_out,
        rounds=runtime.rounds,
    )


def _prompts(loaded: LoadedModel, count: int) -> list[list[int]]:
    """One prompt of each of the first tasks of the built-in set."""
    from selfspec_tune.prompts import load_prompts, render

    by_task = {prompt.task: prompt for prompt in reversed(load_prompts("builtin"))}
    chosen = [by_task[task] for task in sorted(by_task)[:count]]
    return [render(prompt, loaded.tokenizer) for prompt in chosen]


def along(
    loaded: LoadedModel, skip_set: SkipSet, prompt: Sequence[int], tokens: Sequence[int], experts: int | None = None
) -> tuple[list[int], list[float]]:
    """Our choice at each of ``tokens``, and the log-probability of theirs, by the model without what is skipped."""
    import torch

    from selfspec_tune.engine.runners.reference import drafting
    from selfspec_tune.models.loaded import keep_logits

    text = torch.tensor([[*prompt, *tokens]], device=loaded.device)
    with torch.inference_mode(), drafting(loaded, Draft(skip_set, experts=experts)):
        model: Any = loaded.model
        kept = len(tokens) + 1
        logits = model(text, use_cache=False, **keep_logits(model, kept)).logits[0, -kept:-1].float()
    picked = torch.tensor(tokens, device=logits.device)
    logprobs = logits.log_softmax(-1).gather(-1, picked[:, None])[:, 0]
    return logits.argmax(-1).tolist(), logprobs.tolist()


def verify_export(folder: Path, manifest: ExportManifest, *, num_prompts: int = NUM_PROMPTS) -> Verification:
    """Run the export in ``folder``; what came out is also kept in its manifest.

    Raises `UsageError` where the runtime is not installed, saying how to install it, and what loading the target or
    the draft raises.
    """
    from selfspec_tune.models import load_model

    target, revision = manifest.target
    loaded = load_model(target, dtype="float32", device="cpu", revision=revision)
    runtime, simulation = export_format(manifest.format).pair(loaded, folder, manifest)
    found = verify(runtime, loaded, manifest.skip_set(), simulation, experts=manifest.experts, num_prompts=num_prompts)
    manifest.model_copy(update={"verified": found}).save(folder / MANIFEST)
    return found

"""What a user would pick instead: the ways of transformers to decode faster, as arms.

They run as `model.generate` runs them by default. A rival that cannot decode on this
model raises `RivalError`; whoever runs it goes on without it and keeps the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from selfspec_tune.engine import RawGeneration
from selfspec_tune.errors import RivalError
from selfspec_tune.measure.arms import Arm, guarded, in_faster_format, reason_of
from selfspec_tune.measure.hf_generate import hf_generate
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.models import LoadedModel

PROMPT_LOOKUP = "hf-prompt-lookup"
EARLY_EXIT = "hf-early-exit"
DRAFT_MODEL = "hf-draft-model"

# The default of transformers' PromptLookupCandidateGenerator, as in the method's own publication;
# it matches up to 2 tokens. Assisted decoding by a model has defaults for everything.
PROMPT_LOOKUP_TOKENS = 10
_SAME_VOCABULARY = 0.99  # special tokens may carry other names


def prompt_lookup_arm(workload: Workload) -> Arm:
    """``prompt_lookup_num_tokens``: drafts what followed the last tokens' earlier occurrence in the text."""

    about = f"transformers' prompt lookup, up to {PROMPT_LOOKUP_TOKENS} tokens after a match of up to 2"

    def arm(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            return hf_generate(workload, item, loaded, prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS)

        return guarded(Arm(PROMPT_LOOKUP, PROMPT_LOOKUP, decode, description=about, by_transformers=True))

    return in_faster_format(workload, arm)


def early_exit_arm(workload: Workload, exit_layer: int) -> Arm:
    """``assistant_early_exit``: the first ``exit_layer`` layers draft, with the model's own norm and head."""
    loaded = workload.loaded
    about = (
        f"transformers' early exit: the first {exit_layer} of {loaded.num_layers} layers draft, with its default "
        "draft length and confidence; made for models that are trained to exit early"
    )

    def arm(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            with kept_depth(loaded):
                return hf_generate(workload, item, loaded, assistant_early_exit=exit_layer)

        return guarded(Arm(EARLY_EXIT, EARLY_EXIT, decode, description=about, by_transformers=True))

    reason = why_no_early_exit(loaded, exit_layer)
    if reason is not None:
        return unavailable_arm(EARLY_EXIT, reason, description=about)
    return in_faster_format(workload, arm)


def draft_model_arm(workload: Workload, drafter: LoadedModel) -> Arm:
    """``assistant_model``: a separate, smaller model drafts.

    With another vocabulary transformers' universal assisted decoding translates the drafts
    through their text.
    """
    how: dict[str, Any] = {"assistant_model": drafter.model}
    kind = "transformers' assisted decoding"
    if _vocabulary_size(drafter) != _vocabulary_size(workload.loaded):
        how |= {"tokenizer": workload.loaded.tokenizer, "assistant_tokenizer": drafter.tokenizer}
        kind = "transformers' universal assisted decoding (another vocabulary)"

    dtype = str(drafter.dtype).removeprefix("torch.")
    about = (
        f"{kind} by {drafter.id} ({drafter.num_layers} layers, {dtype}, fingerprint {drafter.fingerprint}), with its "
        "default draft length and confidence"
    )
    reason = why_not_drafted_by(workload.loaded, drafter)
    if reason is not None:
        return unavailable_arm(DRAFT_MODEL, reason, description=about)

    def arm(loaded: LoadedModel) -> Arm:
        def decode(item: WorkItem) -> RawGeneration:
            return hf_generate(workload, item, loaded, **how)

        return guarded(Arm(DRAFT_MODEL, DRAFT_MODEL, decode, description=about, by_transformers=True))

    return in_faster_format(workload, arm)


def unavailable_arm(arm_id: str, reason: str, *, description: str = "") -> Arm:
    """A rival known beforehand not to work here: decoding with it raises `RivalError` with ``reason``."""

    def decode(item: WorkItem) -> RawGeneration:
        raise RivalError(arm_id, reason)

    return Arm(arm_id, arm_id, decode, description=description)


def why_no_early_exit(loaded: LoadedModel, exit_layer: int) -> str | None:
    """Why transformers cannot leave this model after ``exit_layer`` layers; None where it can.

    It lowers ``config.num_hidden_layers`` while it drafts, and a forward pass that does not look
    there runs every layer: seen by whether the first layer past the exit still runs.
    """
    if not 1 <= exit_layer < loaded.num_layers:
        return f"a model of {loaded.num_layers} layers has no layer to leave after."
    name, prefix = type(loaded.model).__name__, loaded.model.base_model_prefix
    if not hasattr(loaded.model, prefix):
        return f"transformers' early exit looks for a module {prefix} in {name}, which has none."
    ran: list[bool] = []
    handle = loaded.sublayers.attention[exit_layer].register_forward_hook(lambda *_: ran.append(True))
    try:
        with kept_depth(loaded), torch.inference_mode():
            _base(loaded).config.num_hidden_layers = exit_layer
            token: Any = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
            loaded.model(input_ids=token, use_cache=False)
    except Exception as error:
        return f"{name} does not run with fewer layers ({reason_of(error)})."
    finally:
        handle.remove()
    if ran:
        return (
            f"{name} of transformers runs all of its layers whatever num_hidden_layers says, "
            "so the draft would not exit early."
        )
    return None


def why_not_drafted_by(loaded: LoadedModel, drafter: LoadedModel) -> str | None:
    """Why transformers cannot take ``drafter`` for drafts; None where it can.

    It tells vocabularies apart by their size alone.
    """
    if _vocabulary_size(loaded) != _vocabulary_size(drafter):
        return None
    ours, theirs = loaded.tokenizer.get_vocab(), drafter.tokenizer.get_vocab()
    same = sum(theirs.get(token) == index for token, index in ours.items())
    if same >= _SAME_VOCABULARY * max(len(ours), len(theirs)):
        return None
    return (
        f"{drafter.name} has another vocabulary than {loaded.name} of the same size, {_vocabulary_size(loaded)}; "
        "transformers takes two such models to share their tokens. Give a draft model of the same family."
    )


@contextmanager
def kept_depth(loaded: LoadedModel) -> Iterator[None]:
    """Afterwards the model has as many layers as before, also where drafting with fewer of them failed."""
    config = _base(loaded).config
    depth = getattr(config, "num_hidden_layers", None)
    try:
        yield
    finally:
        if depth is not None:
            config.num_hidden_layers = depth


def _base(loaded: LoadedModel) -> Any:
    """The module whose configuration transformers' early exit changes."""
    return getattr(loaded.model, loaded.model.base_model_prefix)


def _vocabulary_size(loaded: LoadedModel) -> int:
    config: Any = loaded.model.config.get_text_config()
    return int(config.vocab_size)

"""A model that is ready to be measured, with everything that describes it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfspec_tune.models.generation_settings import own_settings
from selfspec_tune.models.sublayers import SubLayers

_KEEP_ARGUMENTS = ("logits_to_keep", "num_logits_to_keep")  # the second is its name of old


def keep_logits(model: Any, number: int) -> dict[str, int]:
    """What tells the model's forward to compute the logits of its last ``number`` positions alone.

    Nothing where it knows no such argument, as a model's own code may not: it then computes all of them.
    """
    accepted = inspect.signature(model.forward).parameters
    return {name: number for name in _KEEP_ARGUMENTS if name in accepted}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and its identity.

    Attributes:
        name: what the user asked for.
        id: a name that loads the same model again: hub id, or the path as it was given (files to
            publish then carry no more of a machine than its user typed).
        source: "hub", "local", "gguf" or "embedded".
        context_length: most tokens, prompt and answer together.
        eos_token_ids: tokens at which ``model.generate`` stops; may be empty.
        provenance: one line on where the weights come from.
        revision: the commit of the hub that they are; None for models that lie elsewhere.
        notes: what a user should be told about how it was loaded.
    """

    name: str
    id: str
    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    sublayers: SubLayers
    context_length: int
    eos_token_ids: tuple[int, ...]
    provenance: str
    revision: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def vocabulary_size(self) -> int:
        """How many token ids it has an embedding for; a tokenizer may know more."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    @property
    def is_quantised(self) -> bool:
        """Whether its weights stay packed: transformers unpacks some where it cannot compute with them."""
        return bool(getattr(self.model, "is_quantized", False))

    @property
    def name_and_dtype(self) -> str:
        """As in "smollm2-135m in bfloat16"."""
        return f"{self.name} in {str(self.dtype).removeprefix('torch.')}"

    @property
    def generation_settings(self) -> dict[str, Any]:
        """What its ``generation_config`` asks for that decides which token comes next; nothing here follows it."""
        generation_config: Any = self.model.generation_config
        return own_settings(generation_config.to_diff_dict()) if generation_config else {}

    @property
    def num_layers(self) -> int:
        return self.sublayers.num_layers

    @property
    def cache_argument(self) -> str:
        """What the model's forward calls its cache: transformers renamed it, a model's own code may not have."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @property
    def takes_positions(self) -> bool:
        """Whether the model's forward is told where its tokens stand; else it counts them by its cache."""
        accepted = inspect.signature(self.model.forward).parameters
        return "position_ids" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())

    def describe(self) -> dict[str, Any]:
        """What the project's files say about the model; JSON-able, no tensors."""
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "num_layers": self.num_layers,
            "architecture": type(self.model).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "provenance": self.provenance,
            **({"revision": self.revision} if self.revision else {}),
        }

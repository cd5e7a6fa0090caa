"""A model that is ready to be measured, with everything that describes it, its fingerprint among that.

It covers what the architecture computes (the configuration without bookkeeping)
and strided samples of every weight, rounded to bfloat16.  The rounding makes it
the same for one checkpoint loaded in float32 and in bfloat16; float16 agrees
too unless a sampled weight is too small for it.  What is not sampled is not covered:
two checkpoints that differ in few values only may have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.generation_settings import own_settings
from selfspec_tune.models.sublayers import SubLayers
from selfspec_tune.models.weights import is_packed
from selfspec_tune.plans import plan_of

SAMPLES_PER_WEIGHT = 64
# Bookkeeping, defaults for generation and run-time choices: none changes the logits of a forward pass.
_VOLATILE_KEY = re.compile(
    r"^_|_token_id$|^(transformers_version|architectures|auto_map|dtype|torch_dtype|quantization_config|"
    r"use_cache|pretraining_tp|initializer_range|id2label|label2id|chunk_size_feed_forward|return_dict|"
    r"output_hidden_states|output_attentions|problem_type|is_local|local_files_only|max_window_layers|"
    r".*_dropout|.*_pdrop|.*dropout)$"
)
_KEEP_ARGUMENTS = ("logits_to_keep", "num_logits_to_keep")  # the second is its name of old


def fingerprint(model: PreTrainedModel, read: Callable[[str], torch.Tensor] | None = None) -> str:
    """16 hexadecimal digits over the model's configuration and sampled weights.

    With ``read``, which gives a weight by its name, ``model`` may be an empty one.
    """
    digest = hashlib.sha256(_canonical_config(model).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(parameter if read is None else read(name)))
    if is_packed(model):  # what is packed lies in buffers, and means nothing without its settings
        digest.update(json.dumps(model.config.to_dict()["quantization_config"], sort_keys=True, default=str).encode())
        for name, buffer in sorted(model.named_buffers()):
            digest.update(f"{name}{tuple(buffer.shape)}".encode())
            digest.update(_sample(buffer))
    return digest.hexdigest()[:16]


def _canonical_config(model: PreTrainedModel) -> str:
    return json.dumps(_without_volatile(model.config.to_diff_dict()), sort_keys=True, default=str)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_volatile(v) for k, v in value.items() if not _VOLATILE_KEY.search(str(k))}
    return float(f"{value:.6g}") if isinstance(value, float) else value  # GGUF stores float32


def _sample(parameter: torch.Tensor) -> bytes:
    """At most SAMPLES_PER_WEIGHT values, evenly strided over the flattened weight, as bytes."""
    flat = parameter.detach().reshape(-1)
    stride = max(1, -(-flat.numel() // SAMPLES_PER_WEIGHT))
    sample = flat[::stride].to("cpu", torch.bfloat16)
    return sample.view(torch.int16).numpy().astype("<i2").tobytes()


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
        return is_packed(self.model)

    @property
    def architecture(self) -> str:
        """transformers' name of its class."""
        return type(self.model).__name__

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
    def experts_per_token(self) -> int:
        """To how many experts a token goes; 0 where it has none, or no plan that tells."""
        try:
            return plan_of(self.model.config.to_dict()).most_chosen
        except UnsupportedModelError:
            return 0

    @property
    def decoder(self) -> Any:
        """The module that holds the layers: its forward takes token ids, and gives hidden states after the last norm.

        ``base_model`` of transformers may be another, as a wrapper's is that also sees pictures.
        """
        layers = self.sublayers.layers
        path = next(name for name, module in self.model.named_modules() if module is layers)
        return self.model.get_submodule(path.rpartition(".")[0])

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
            "architecture": self.architecture,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "provenance": self.provenance,
            **({"revision": self.revision} if self.revision else {}),
        }

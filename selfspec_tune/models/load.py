"""``load_model``: a name in, a model ready to be measured out.

A name is, in this order: an alias, a local directory, a GGUF file, a hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError
from selfspec_tune.models.access import can_ask_hub, explain_load_failure
from selfspec_tune.models.devices import choose_device, choose_dtype, cpu_computes_bfloat16
from selfspec_tune.models.fingerprint import fingerprint
from selfspec_tune.models.finite import check_weights
from selfspec_tune.models.gguf_file import load_gguf
from selfspec_tune.models.loaded import LoadedModel
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.models.origin import Origin, find_origin
from selfspec_tune.models.structure import unsupported_reason
from selfspec_tune.models.sublayers import find_sublayers

Choose = Callable[[torch.dtype | None], torch.dtype]
"""What to load a checkpoint in, of its own type."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    local_files_only: bool = False,
) -> LoadedModel:
    """Load a decoder-only model, in evaluation mode and without gradients.

    Args:
        name: alias, local directory, GGUF file or hub id.
        dtype: float32, bfloat16, float16, or auto: by `choose_dtype`, and float32 where torch would
            imitate bfloat16 in a model that none of our own loops serves.
        device: auto, cpu, cuda or cuda:N.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: also load weights that are no safetensors.
        local_files_only: never ask the hub, even for what is not cached.

    Raises:
        UnknownModelError: the name leads nowhere.
        ModelAccessError: the model is gated, or not here and the hub cannot be reached.
        FileFormatError: its files are corrupt or incomplete, or a weight is no number.
        UnsupportedModelError: its sub-layers cannot be separated.
        UsageError: dtype or device is unknown or not there, or a weight is too large for the dtype.
    """
    chosen_device = choose_device(device)

    def choose(own: torch.dtype | None) -> torch.dtype:
        return choose_dtype(dtype, chosen_device, own)

    without_own = choose(None)  # refuses what cannot be before anything is read
    origin = find_origin(name)
    if origin.source == "gguf":
        model, tokenizer, provenance = load_gguf(Path(origin.location), without_own)
    else:
        model, tokenizer = _load_checkpoint(origin, choose, trust_remote_code, allow_pickle, local_files_only)
        provenance = origin.provenance or _hub_provenance(origin.location)
    loaded = _prepare(origin, model, tokenizer, provenance, chosen_device)
    return _without_imitation(loaded) if dtype == "auto" else loaded


def _load_checkpoint(
    origin: Origin, choose: Choose, trust_remote_code: bool, allow_pickle: bool, local_files_only: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From files on this machine where they are all there, else through the network."""
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        with quietly():
            return _from_pretrained(origin, choose, allow_pickle, options)
    except SelfSpecError:
        raise
    except Exception as error:
        if origin.source != "hub" or local_files_only or not can_ask_hub():
            raise explain_load_failure(origin, error, hub_was_asked=False) from error
    try:
        return _from_pretrained(origin, choose, allow_pickle, options | {"local_files_only": False})
    except SelfSpecError:
        raise
    except Exception as error:
        raise explain_load_failure(origin, error, hub_was_asked=True) from error


def _from_pretrained(
    origin: Origin, choose: Choose, allow_pickle: bool, options: dict[str, bool]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = AutoConfig.from_pretrained(origin.location, **options)

    def load(dtype: torch.dtype | str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            origin.location,
            config=config,
            dtype=dtype,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **options,
        )

    stated: torch.dtype | None = config.dtype or config.get_text_config().dtype
    model, report = load("auto" if stated is None else choose(stated))
    if stated is None and model.dtype is not (chosen := choose(model.dtype)):  # the weights told their type
        model, report = load(chosen)
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise FileFormatError(
            f"The checkpoint of {origin.name!r} lacks {len(report['missing_keys'])} of the model's weights "
            f"({some}): it is incomplete or of another architecture. Get it again."
        )
    return model, AutoTokenizer.from_pretrained(origin.location, **options)


def _prepare(
    origin: Origin,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: str,
    device: torch.device,
) -> LoadedModel:
    sublayers = find_sublayers(model)
    model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    check_weights(model, origin.name)
    return LoadedModel(
        name=origin.name,
        id=origin.id,
        source=origin.source,
        model=model,
        tokenizer=tokenizer,
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint(model),
        sublayers=sublayers,
        context_length=_context_length(model),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        provenance=provenance,
    )


def _without_imitation(loaded: LoadedModel) -> LoadedModel:
    """The model in float32 where its own forward pass would run on torch's slow imitation of bfloat16."""
    if loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16 or cpu_computes_bfloat16():
        return loaded
    if unsupported_reason(loaded) is None:
        return loaded
    return replace(loaded, model=loaded.model.float(), dtype=torch.float32)


def _hub_provenance(hub_id: str) -> str:
    """The commit that was loaded, read off the cache, where snapshots are named by it."""
    cached = try_to_load_from_cache(hub_id, "config.json")
    return f"hub, revision {Path(cached).parent.name}" if isinstance(cached, str) else "hub"


def _context_length(model: PreTrainedModel) -> int:
    config: Any = model.config.get_text_config()
    for key in _CONTEXT_KEYS:
        length = getattr(config, key, None)
        if isinstance(length, int) and length > 0:
            return length
    raise UnsupportedModelError(
        f"{type(model).__name__} states no context length: "
        f"expected one of {', '.join(_CONTEXT_KEYS)} in its config.json. Add it there."
    )


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The first of generation config, config and tokenizer that names any: where ``generate`` stops."""
    generation: Any = model.generation_config
    config: Any = model.config.get_text_config()
    for owner in (generation, config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if isinstance(ids, int):
            return (ids,)
        if isinstance(ids, Iterable):
            return tuple(sorted(set(ids)))
    return ()

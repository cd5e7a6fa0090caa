"""``load_model``: a name in, a model ready to be measured out.

A name is, in this order: an alias, a local directory, a GGUF file, a hub id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from selfspec_tune.checks import checked_arguments
from selfspec_tune.errors import FileFormatError, SelfSpecError
from selfspec_tune.models.access import can_ask_hub, explain_load_failure
from selfspec_tune.models.auto import AutoModelForCausalLM
from selfspec_tune.models.bound import unbound_reason
from selfspec_tune.models.devices import choose_device, choose_dtype, cpu_computes_bfloat16
from selfspec_tune.models.ends import context_length, eos_token_ids, rope_limit
from selfspec_tune.models.generation_settings import check_generation_file
from selfspec_tune.models.gguf import load_gguf
from selfspec_tune.models.loaded import LoadedModel, fingerprint
from selfspec_tune.models.loading_output import quietly
from selfspec_tune.models.model_files import read_config
from selfspec_tune.models.origin import ADAPTER, Origin, find_origin
from selfspec_tune.models.own_code import check_own_code, without_exit
from selfspec_tune.models.sublayers import find_sublayers, refuse_by_config
from selfspec_tune.models.weights import (
    by_its_files,
    cannot_run,
    check_all_read,
    check_known,
    check_stated_size,
    check_weights,
    is_packed,
    is_plain,
    num_bytes_stored,
    packed_tensor,
    quantised_by,
    try_out,
    unstated,
)

Choose = Callable[[torch.dtype | None], torch.dtype]
"""What to load a checkpoint in, of its own type."""

_DAMAGE = (OSError, SafetensorError)


@checked_arguments
def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    local_files_only: bool = False,
    revision: str | None = None,
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
        revision: branch, tag or commit of a hub id; None: the hub's default.

    Raises:
        UnknownModelError: the name leads nowhere, or to an adapter alone.
        ModelAccessError: the model is gated, or not here and the hub cannot be reached.
        FileFormatError: its files are corrupt or incomplete, hold tensors that the model has no place for, or a weight
            is no number.
        UnsupportedModelError: its sub-layers cannot be separated.
        UsageError: dtype, device or revision is unknown or not there, a weight is too large for the dtype, or the
            weights are quantised in a way that cannot run here.
    """
    chosen_device = choose_device(device)

    def choose(own: torch.dtype | None) -> torch.dtype:
        return choose_dtype(dtype, chosen_device, own)

    without_own = choose(None)  # refuses what cannot be before anything is read
    origin = find_origin(os.fspath(name), revision)
    if origin.source == "gguf":
        model, tokenizer, provenance = load_gguf(Path(origin.location), without_own)
        loaded = _prepare(origin, model, tokenizer, provenance, chosen_device)
    else:
        options = _Options(choose, chosen_device, trust_remote_code, allow_pickle)
        loaded = _of_checkpoint(origin, _load_checkpoint(origin, options, local_files_only), chosen_device)
    return _without_imitation(loaded) if dtype == "auto" else loaded


@dataclass(frozen=True, slots=True)
class _Options:
    """How a checkpoint is loaded, wherever its files are."""

    choose: Choose
    device: torch.device
    trust_remote_code: bool
    allow_pickle: bool


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """What was loaded of the files in ``folder``.

    ``method``: what the weights are quantised by, if by anything; ``claimed``: what config.json says, and is not so;
    ``nonsense``: what its generation_config.json says, and cannot be.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    method: str | None
    claimed: str | None = None
    nonsense: tuple[str, ...] = ()


def _load_checkpoint(origin: Origin, options: _Options, local_files_only: bool) -> _Checkpoint:
    """From files on this machine where they are all there, else through the network."""
    try:
        with quietly(), without_exit(origin.name):
            return _from_pretrained(origin, options, local_files_only=True)
    except SelfSpecError:
        raise
    except Exception as error:
        if origin.source != "hub" or local_files_only or not can_ask_hub():
            raise explain_load_failure(origin, error, hub_was_asked=False) from error
    try:
        with without_exit(origin.name):
            return _from_pretrained(origin, options, local_files_only=False)
    except SelfSpecError:
        raise
    except Exception as error:
        raise explain_load_failure(origin, error, hub_was_asked=True) from error


def _from_pretrained(origin: Origin, options: _Options, *, local_files_only: bool) -> _Checkpoint:
    source: dict[str, Any] = {"local_files_only": local_files_only, "revision": origin.revision or "main"}
    file = Path(str(cached_file(origin.location, "config.json", **source)))
    read_config(file)  # refuses what would keep transformers busy for hours
    nonsense = check_generation_file(file.parent)
    source["trust_remote_code"] = options.trust_remote_code
    config = AutoConfig.from_pretrained(origin.location, **source)
    refuse_by_config(config)  # before any weights are fetched
    config.return_dict = True  # what passes return is read by its names
    method, claimed = quantised_by(config) or by_its_files(file.parent), None
    if method == "bitsandbytes" and is_plain(file.parent):  # it quantises while it loads, where it can be had
        method, claimed = None, method
        del config.quantization_config
    check_known(origin.name, method)
    num_bytes = num_bytes_stored(file.parent)
    if num_bytes and method is None and not hasattr(config, "auto_map"):
        check_stated_size(file, config, num_bytes)
    try:
        model = _load_weights(origin, config, options, source, file.parent, is_quantised=method is not None)
        if is_packed(model):
            try_out(model)
    except (SelfSpecError, *_DAMAGE):
        raise
    except Exception as error:
        if method is None:
            raise
        raise cannot_run(origin.name, method, error) from error
    if method is not None and not is_packed(model) and is_plain(file.parent):
        method, claimed = None, method
    tokenizer = AutoTokenizer.from_pretrained(origin.location, **source)
    return _Checkpoint(model, tokenizer, file.parent, method, claimed, tuple(nonsense))


def _load_weights(
    origin: Origin, config: Any, options: _Options, source: dict[str, Any], folder: Path, *, is_quantised: bool
) -> PreTrainedModel:
    def load(dtype: torch.dtype | str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            origin.location,
            config=config,
            dtype=dtype,
            use_safetensors=None if options.allow_pickle else True,
            output_loading_info=True,
            device_map=options.device if is_quantised else None,  # packed weights cannot always be moved later
            **source,
        )

    stated: torch.dtype | None = config.dtype or config.get_text_config().dtype
    model, report = load("auto" if stated is None else options.choose(stated))
    if stated is None and model.dtype is not (chosen := options.choose(model.dtype)):  # the weights told their type
        model, report = load(chosen)
    if report["missing_keys"]:
        if not is_quantised and (packed := packed_tensor(folder)):
            raise unstated(origin.name, packed)
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise FileFormatError(
            f"The checkpoint of {origin.name!r} lacks {len(report['missing_keys'])} of the model's weights "
            f"({some}): it is incomplete or of another architecture. Get it again."
        )
    loaded: PreTrainedModel = model
    if not is_quantised:
        check_all_read(origin.name, loaded, report["unexpected_keys"])
    return loaded


def _of_checkpoint(origin: Origin, read: _Checkpoint, device: torch.device) -> LoadedModel:
    """The model with what its files say of it: the commit, which the hub's cache names folders by, and notes."""
    commit = read.folder.name if origin.source == "hub" else None
    provenance = origin.provenance or f"hub, revision {commit}"
    if read.method is not None:
        provenance += f", quantised by {read.method}" if is_packed(read.model) else f", dequantised from {read.method}"
    loaded = _prepare(origin, read.model, read.tokenizer, provenance, device)
    return replace(loaded, revision=commit, notes=_notes(origin, read, loaded.eos_token_ids, loaded.vocabulary_size))


def _notes(origin: Origin, read: _Checkpoint, ends: Iterable[int], num_tokens: int) -> tuple[str, ...]:
    """What a user may not expect of the loaded model, whose answers end at ``ends``, of ``num_tokens`` tokens."""
    notes, method = list(read.nonsense), read.method
    beyond = [token for token in ends if not 0 <= token < num_tokens]
    if beyond:
        notes += [
            f"{origin.name} is said to end its answers at token {beyond[0]}, and has {num_tokens} tokens: none ends "
            "there. See eos_token_id in generation_config.json and config.json"
        ]
    limit = rope_limit(read.model.config.get_text_config())
    if limit is not None:
        notes += [
            f"the rotary positions of {origin.name} change beyond {limit} positions (longrope), where transformers "
            "computes a text anew: contexts end there here"
        ]
    if method is not None and is_packed(read.model):
        notes += [
            f"{origin.name} is quantised by {method}: it runs as transformers runs it, on the reference runner, where "
            "skipping saves no time. The checkpoint that it was made from, or a GGUF file, runs on the others"
        ]
    elif method is not None:
        notes += [
            f"{origin.name} is quantised by {method}; transformers dequantised it, since it does not compute so here"
        ]
    if read.claimed is not None:
        notes += [
            f"the config.json of {origin.name} asks for {read.claimed}, but its weights are plain numbers: they are "
            "loaded and measured as they are"
        ]
    if (read.folder / ADAPTER).is_file():
        is_applied = getattr(read.model, "_hf_peft_config_loaded", False)
        notes += [
            f"an adapter lies beside the weights of {origin.name}, and "
            + ("transformers applied it" if is_applied else "is not used: what is measured are the weights alone")
            + ". Merge it into them, or move it away, to be sure"
        ]
    return tuple(notes)


def _prepare(
    origin: Origin,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: str,
    device: torch.device,
) -> LoadedModel:
    sublayers = find_sublayers(model)
    if not is_packed(model):  # those lie where they were loaded
        model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    check_weights(model, origin.name)
    loaded = LoadedModel(
        name=origin.name,
        id=origin.id,
        source=origin.source,
        model=model,
        tokenizer=tokenizer,
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint(model),
        sublayers=sublayers,
        context_length=context_length(model),
        eos_token_ids=eos_token_ids(model, tokenizer),
        provenance=provenance,
    )
    check_own_code(loaded)
    return loaded


def _without_imitation(loaded: LoadedModel) -> LoadedModel:
    """The model in float32 where its own forward pass would run on torch's slow imitation of bfloat16."""
    if loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16 or cpu_computes_bfloat16():
        return loaded
    if unbound_reason(loaded.model) is None or loaded.is_quantised:
        return loaded
    return replace(loaded, model=loaded.model.float(), dtype=torch.float32)

"""Drafts that transformers loads as ordinary models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.blocks import partial
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.job import Job, Written
from selfspec_tune.export.layout import NO_SUCH_MODEL, empty_model, without_code

if TYPE_CHECKING:
    from torch import Tensor


_BY_DEPTH = ("scale_depth", "scale_attn_by_inverse_layer_idx")  # of MiniCPM and GPT-2: a layer's scale by its place


def write_whole_layers(job: Job, folder: Path, final: Path) -> Written:
    """The model's own architecture with fewer layers.

    Raises `SkipSetError` where a layer would lack its attention or its MLP, `UnsupportedModelError` where the
    architecture has no model of just these layers.
    """
    lacking = partial(job.blocks)
    if lacking or not job.blocks:
        some = ", ".join(map(str, lacking[:3])) or "no layer"
        raise SkipSetError(
            f"hf-draft holds whole layers only; of this skip set would be left: {some} alone. Use --to nas, --to gguf "
            "or --to hf-zero, or skip whole layers (a set of another project's conflayers kind)."
        )
    config = job.layout.config_of(job.blocks, job.checkpoint.config)
    names = list(job.layout.renamed(job.blocks))
    _check_loads(job, config, names)
    size = write_checkpoint(folder, ((new, job.checkpoint.read(old)) for new, old in names), config)
    copy_beside(job, folder)
    return Written(size, assisted_launch(job, final), settings={"exit_threshold": job.exit_threshold})


def _check_loads(job: Job, config: dict[str, Any], names: list[tuple[str, str]]) -> None:
    """That a model of ``config`` takes the tensors (new name, name in the checkpoint): each has its place and shape."""
    from transformers import AutoConfig

    kind = config["model_type"]
    reason = ""
    try:
        model = empty_model(AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"}))
    except (*NO_SUCH_MODEL, TypeError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
    else:
        shapes = {new: job.checkpoint.tensors[old].shape for new, old in names}
        wrong = [name for name, one in model.named_parameters() if tuple(one.shape) != shapes.get(name)]
        known, own = model.state_dict(), job.layout.model.state_dict()
        wrong += [new for new, old in names if old in own and new not in known]
        reason = f"{wrong[0]} is not what it takes" if wrong else ""
    by_depth = [name for name in _BY_DEPTH if config.get(name)]
    if by_depth:
        reason = f"{by_depth[0]} counts layers"
    if reason:
        raise UnsupportedModelError(
            f"{job.model} is of the type {kind}, whose layers are what they are by their place: with fewer it does not "
            f"compute what was searched ({reason}). Use --to hf-zero or --to transformers-generate."
        )


def write_zeroed(job: Job, folder: Path, final: Path) -> Written:
    """The model itself, the skipped sub-layers' weights zero: they add nothing, and save nothing.

    Exact in every architecture whose sub-layers are added to the residual stream.
    """
    size = write_checkpoint(folder, _zeroed(job), without_code(job.checkpoint.config))
    copy_beside(job, folder)
    note = "Zeroed sub-layers are computed all the same: this draft is as slow as its target. It is for checks, and for"
    settings = {"exit_threshold": job.exit_threshold}
    return Written(size, assisted_launch(job, final), (f"{note} runtimes that skip zeros.",), settings)


def _zeroed(job: Job) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name in job.checkpoint.tensors:
        tensor = job.checkpoint.read(name)
        is_skipped = any(job.layout.is_of(name, index) for index in job.skip_set.indices)
        yield name, torch.zeros_like(tensor) if is_skipped else tensor


def copy_beside(job: Job, folder: Path) -> None:
    """The tokenizer's files and what generation reads, as files of our own."""
    for file in job.checkpoint.beside:
        shutil.copyfile(file, folder / file.name)


def assisted_launch(job: Job, final: Path, *, remote_code: bool = False) -> dict[str, str]:
    """How transformers drafts with the folder."""
    trust = ", trust_remote_code=True" if remote_code else ""
    load = f"AutoModelForCausalLM.from_pretrained({str(final)!r}{trust})"
    return {
        "transformers": f"draft = {load}; draft.generation_config.update(num_assistant_tokens={job.draft_tokens}, "
        f"num_assistant_tokens_schedule='constant', assistant_confidence_threshold={job.exit_threshold:g}); "
        f"model.generate(**inputs, assistant_model=draft, {job.sampling.transformers})"
    }

"""Drafts of fewer whole layers, for whatever loads the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.format import Written
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.export.layout import NO_SUCH_MODEL, empty_model, partial

_BY_DEPTH = ("scale_depth", "scale_attn_by_inverse_layer_idx")  # of MiniCPM and GPT-2: a layer's scale by its place


class HfDraft(AssistedFormat):
    """The model's own architecture with fewer layers."""

    name = "hf-draft"
    about = "the model with fewer whole layers, for whatever loads it"

    def write(self, job: Job[CheckpointTarget], folder: Path, final: Path) -> Written:
        """The layers that are left.

        Raises `SkipSetError` where a layer would lack its attention or its MLP, `UnsupportedModelError` where the
        architecture has no model of just these layers.
        """
        lacking = partial(job.blocks)
        if lacking or not job.blocks:
            some = ", ".join(map(str, lacking[:3])) or "no layer"
            raise SkipSetError(
                f"hf-draft holds whole layers only; of this skip set would be left: {some} alone. Use `to` nas, `to` "
                "gguf or `to` hf-zero, or skip whole layers (a set of another project's conflayers kind)."
            )
        config = job.target.layout.config_of(job.blocks, job.target.checkpoint.config)
        names = list(job.target.layout.renamed(job.blocks))
        _check_loads(job, config, names)
        size = write_checkpoint(folder, ((new, job.target.checkpoint.read(old)) for new, old in names), config)
        copy_beside(job, folder)
        return Written(size, assisted_launch(job, final), settings={"exit_threshold": job.exit_threshold})


FORMAT = HfDraft()


def _check_loads(job: Job[CheckpointTarget], config: dict[str, Any], names: list[tuple[str, str]]) -> None:
    """That a model of ``config`` takes the tensors (new name, name in the checkpoint): each has its place and shape."""
    from transformers import AutoConfig

    kind = config["model_type"]
    reason = ""
    try:
        model = empty_model(AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"}))
    except (*NO_SUCH_MODEL, TypeError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
    else:
        shapes = {new: job.target.checkpoint.tensors[old].shape for new, old in names}
        wrong = [name for name, one in model.named_parameters() if tuple(one.shape) != shapes.get(name)]
        known, own = model.state_dict(), job.target.layout.model.state_dict()
        wrong += [new for new, old in names if old in own and new not in known]
        reason = f"{wrong[0]} is not what it takes" if wrong else ""
    by_depth = [name for name in _BY_DEPTH if config.get(name)]
    if by_depth:
        reason = f"{by_depth[0]} counts layers"
    if reason:
        raise UnsupportedModelError(
            f"{job.target.model} is of the type {kind}, whose layers are what they are by their place: with fewer it "
            f"does not compute what was searched ({reason}). Use `to` hf-zero or `to` transformers-generate."
        )

"""Drafts of fewer whole layers, for whatever loads the model."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.blocks import partial
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.format import Written
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.export.layout import NO_SUCH_MODEL, empty_model
from selfspec_tune.export.restated import unlike
from selfspec_tune.export.stored_names import StoredNames
from selfspec_tune.files import write_json_atomic

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
        layout = job.target.layout
        names = list(layout.renamed(job.blocks))
        config = layout.config_of(job.blocks, job.target.checkpoint.config)
        write_json_atomic(folder / "config.json", config)  # read as any loader does
        _check_same(job, folder, names)
        size = write_checkpoint(folder, ((new, job.target.checkpoint.read(old)) for new, old in names), config)
        copy_beside(job, folder)
        return Written(size, assisted_launch(job, final), settings={"exit_threshold": job.exit_threshold})


FORMAT = HfDraft()


def _check_same(job: Job[CheckpointTarget], folder: Path, names: list[tuple[str, str]]) -> None:
    """That a model of the configuration in ``folder`` computes what is left, and takes what is stored.

    ``names``: (new name, name in the checkpoint) of every tensor.
    """
    reason = _unlike(job, folder, names)
    if reason:
        raise UnsupportedModelError(
            f"{job.target.model} is of the type {job.target.layout.config['model_type']}, whose layers are what they "
            f"are by their place: with fewer it does not compute what was searched ({reason}). Use `to` hf-zero or "
            "`to` transformers-generate."
        )


def _unlike(job: Job[CheckpointTarget], folder: Path, names: list[tuple[str, str]]) -> str:
    from transformers import AutoConfig

    from selfspec_tune.models.bound import bind

    source = job.target.layout.plan
    try:
        model = empty_model(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        made = bind(model).plan if source is not None else None
    except (*NO_SUCH_MODEL, UnsupportedModelError, TypeError, KeyError, IndexError) as error:
        return str(error).splitlines()[0]
    if source is not None and made is not None and (found := unlike(source, made, job.blocks)):
        return found
    stored = StoredNames(model, (new for new, _ in names))
    wrong = stored.missing + stored.misshapen(job.target.checkpoint, dict(names))
    wrong += [new for new, old in names if old in job.target.layout.names.of and new not in stored.of]
    if wrong:
        return f"{wrong[0]} is not what it takes"
    by_depth = [name for name in _BY_DEPTH if source is None and job.target.layout.config.get(name)]
    return f"{by_depth[0]} counts layers" if by_depth else ""

"""Drafts of fewer whole layers, for whatever loads the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.draft import Draft
from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.blocks import partial
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.format import Written
from selfspec_tune.export.formats.assisted import AssistedFormat, assisted_launch, copy_beside
from selfspec_tune.export.job import CheckpointTarget, Job
from selfspec_tune.export.layout import NO_SUCH_MODEL, empty_model
from selfspec_tune.export.restated import drafting_with, unlike
from selfspec_tune.export.stored_names import StoredNames
from selfspec_tune.files import write_json_atomic

_CHECKED_TOKENS, _TOLERANCE = 512, 1e-4
_BY_DEPTH = ("scale_depth", "scale_attn_by_inverse_layer_idx")  # of MiniCPM and GPT-2: a layer's scale by its place


class HfDraft(AssistedFormat):
    """The model's own architecture with fewer layers."""

    name = "hf-draft"
    about = "the model with fewer whole layers, for whatever loads it"
    keeps_experts = True

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
        config = layout.config_of(job.blocks, job.target.checkpoint.config, job.experts)
        write_json_atomic(folder / "config.json", config)  # read as any loader does
        _refuse(job, _unlike(job, folder, names))
        size = write_checkpoint(folder, ((new, job.target.checkpoint.read(old)) for new, old in names), config)
        copy_beside(job, folder)
        if layout.plan is None:
            _refuse(job, _computed_otherwise(job, folder))
        settings = {"exit_threshold": job.exit_threshold} | job.expert_settings
        return Written(size, assisted_launch(job, final), settings=settings)


FORMAT = HfDraft()


def _refuse(job: Job[CheckpointTarget], reason: str) -> None:
    """Raise `UnsupportedModelError` where there is a reason why a model of fewer layers is another."""
    if reason:
        raise UnsupportedModelError(
            f"{job.target.model} is of the type {job.target.layout.config['model_type']}, whose layers are what they "
            f"are by their place: with fewer it does not compute what was searched ({reason}). Use `to` hf-zero or "
            "`to` transformers-generate."
        )


def _unlike(job: Job[CheckpointTarget], folder: Path, names: list[tuple[str, str]]) -> str:
    """Why a model of the configuration in ``folder`` does not compute what is left, or take what is stored.

    ``names``: (new name, name in the checkpoint) of every tensor.
    """
    from transformers import AutoConfig

    from selfspec_tune.models.bound import bind

    source = job.target.layout.plan
    try:
        model = empty_model(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        made = bind(model).plan if source is not None else None
    except (*NO_SUCH_MODEL, UnsupportedModelError, TypeError, KeyError, IndexError) as error:
        return str(error).splitlines()[0]
    found = unlike(drafting_with(source, job.experts), made, job.blocks) if source and made else ""
    if found:
        return found
    stored = StoredNames(model, (new for new, _ in names))
    wrong = stored.missing + stored.misshapen(job.target.checkpoint, dict(names))
    wrong += [new for new, old in names if old in job.target.layout.names.of and new not in stored.of]
    if wrong:
        return f"{wrong[0]} is not what it takes"
    by_depth = [name for name in _BY_DEPTH if source is None and job.target.layout.config.get(name)]
    return f"{by_depth[0]} counts layers" if by_depth else ""


def _computed_otherwise(job: Job[CheckpointTarget], folder: Path) -> str:
    """Why what is written is another model, by running both on a few hundred tokens: no plan tells what it computes."""
    import torch
    from transformers import AutoModelForCausalLM

    from selfspec_tune.engine.runners.reference import drafting
    from selfspec_tune.models import load_model
    from selfspec_tune.models.loading_output import quietly

    with torch.inference_mode(), quietly():
        target = load_model(str(job.target.folder), device="cpu", local_files_only=True)
        ids = torch.arange(min(target.context_length, _CHECKED_TOKENS))[None] % target.vocabulary_size
        with drafting(target, Draft(job.skip_set, experts=job.experts)):
            wanted = target.model(input_ids=ids).logits
        dtype = target.dtype
        del target  # both need not fit into memory
        draft: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        made = draft(input_ids=ids).logits
    is_same = torch.allclose(made, wanted, rtol=_TOLERANCE, atol=_TOLERANCE * float(wanted.abs().max()))
    return "" if is_same else "run on some tokens, both differ"

"""Drafts for transformers: ordinary models, or its own self-speculation for ``custom_generate=…``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.draft import DraftPolicy, PolicyKind
from selfspec_tune.errors import SkipSetError, UnsupportedModelError
from selfspec_tune.export.checkpoint import write_checkpoint
from selfspec_tune.export.job import Job, Written
from selfspec_tune.export.layout import NO_SUCH_MODEL, empty_model, partial, without_code
from selfspec_tune.files import read_text, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

_BY_DEPTH = ("scale_depth", "scale_attn_by_inverse_layer_idx")  # of MiniCPM and GPT-2: a layer's scale by its place
_TEMPLATE = Path(__file__).parent / "generate_files" / "generate.py"
_PLACE = "SETTINGS = {}"
_THRESHOLD = 0.8  # where the policy needs costs measured on the user's machine


def write_whole_layers(job: Job, folder: Path, final: Path) -> Written:
    """The model's own architecture with fewer layers.

    Raises `SkipSetError` where a layer would lack its attention or its MLP, `UnsupportedModelError` where the
    architecture has no model of just these layers.
    """
    lacking = partial(job.blocks)
    if lacking or not job.blocks:
        some = ", ".join(map(str, lacking[:3])) or "no layer"
        raise SkipSetError(
            f"hf-draft holds whole layers only; of this skip set would be left: {some} alone. Use `to` nas, `to` gguf "
            "or `to` hf-zero, or skip whole layers (a set of another project's conflayers kind)."
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
            f"compute what was searched ({reason}). Use `to` hf-zero or `to` transformers-generate."
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


def write_generate(job: Job, folder: Path, final: Path) -> Written:
    """``custom_generate/generate.py``: the skip set, the policy and the loop, without need of this package."""
    layout, skip_set = job.outline, job.skip_set
    attentions = [f"{layout.layers}.{layer}.{layout.attention}" for layer in skip_set.attention]
    mlps = [f"{layout.layers}.{layer}.{layout.mlp}" for layer in skip_set.mlp]
    policy, notes = _carried(job.policy)
    settings = {
        "model": job.model,
        "num_layers": skip_set.num_layers,
        "skipped": [*attentions, *mlps],
        "first_attention": f"{layout.layers}.0.{layout.attention}",
        "vocabulary": job.vocabulary,
        "max_draft_tokens": policy.max_draft_tokens,
        "exit_threshold": policy.exit_threshold,
    }
    write_atomic(folder / "custom_generate" / "generate.py", code_of(settings))
    how = f"custom_generate={str(final)!r}, trust_remote_code=True, {job.sampling.transformers}"
    line = f"model.generate(**inputs, {how})"
    carried = {name: settings[name] for name in ("max_draft_tokens", "exit_threshold", "vocabulary")}
    return Written(0, {"transformers": line}, notes, carried)


def code_of(settings: Mapping[str, Any]) -> str:
    """The loop with its settings: JSON in a string, for true, false and null are no Python."""
    code = read_text(_TEMPLATE).replace(_PLACE, f"SETTINGS = json.loads({json.dumps(settings)!r})", 1)
    return code.replace("import inspect\n", "import inspect\nimport json\n", 1)


def _carried(policy: DraftPolicy) -> tuple[DraftPolicy, tuple[str, ...]]:
    """A policy that needs to measure nothing, and what a user should know of it."""
    if policy.kind is PolicyKind.FIXED:
        return DraftPolicy(PolicyKind.THRESHOLD, policy.max_draft_tokens, 0.0), ()
    if policy.kind is PolicyKind.THRESHOLD:
        return policy, ()
    threshold = policy.exit_threshold if policy.kind is PolicyKind.ADAPTIVE else _THRESHOLD
    note = f"drafts while it is {threshold:.0%} sure, up to {policy.max_draft_tokens} tokens: {policy.kind} stays here"
    return DraftPolicy(PolicyKind.THRESHOLD, policy.max_draft_tokens, threshold), (note,)

"""Other projects' skip sets as a skip.json of our own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from selfspec_tune.dialects import SKIP_CONFIG, read_skip_set, split_key
from selfspec_tune.draft import Draft
from selfspec_tune.errors import SkipSetError, UnsupportedModelError, UsageError
from selfspec_tune.export.job import Job
from selfspec_tune.export.layout import read_outline
from selfspec_tune.export.target import checkpoint_folder
from selfspec_tune.models.origin import find_origin
from selfspec_tune.results import DraftSettings, ModelInfo, Score, SkipConfig, SkipLayers


def import_skip_set(
    source: str, model: str, out: Path, *, revision: str | None = None, force: bool = False
) -> tuple[SkipConfig, str]:
    """Write a skip.json of the skip set in ``source``, unmeasured, and the dialect that it was read as.

    ``revision``: branch, tag or commit of ``model``, which is a hub id then; the commit that it leads to is kept.
    Raises `UsageError` where ``out`` is there already, `FileFormatError` or `SkipSetError` for the file, and what
    finding the model raises.
    """
    if out.is_symlink():
        raise UsageError(f"{out} is a symbolic link, which an import never follows. Give the file itself.")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already. Give another --out, or --force to replace it.")
    origin = find_origin(model, revision)
    with ExitStack() as stack:
        folder = stack.enter_context(checkpoint_folder(model, revision))
        skip_set, dialect = read_skip_set(source, num_layers=read_outline(folder).num_layers)
        if dialect == SKIP_CONFIG:
            raise SkipSetError(f"{source} is a skip.json of ours already; give it to any command as it is.")
        job = Job(skip_set, model, folder, revision=revision)
        config = SkipConfig(
            model=ModelInfo(
                id=origin.id,
                name=origin.name,
                source=origin.source,
                fingerprint=_fingerprint(job),
                num_layers=skip_set.num_layers,
                revision=folder.name if origin.source == "hub" else None,
            ),
            skip=SkipLayers.model_validate(skip_set.to_dict()),
            draft=DraftSettings.model_validate(Draft(skip_set).to_dict()),
            score=Score(verdict="undecided", split="none", num_prompts=0),
            provenance={"imported_from": {"dialect": dialect, "file": Path(split_key(source)[0]).name}},
        )
    config.save(out)
    return config, dialect


def _fingerprint(job: Job) -> str:
    """Read weight by weight where the checkpoint allows it, else of the model, loaded whole."""
    try:
        return job.fingerprint
    except UnsupportedModelError:
        from selfspec_tune.models import load_model

        return load_model(job.model, device="cpu", revision=job.revision).fingerprint

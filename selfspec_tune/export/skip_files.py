"""Skip sets in other projects' files: written as theirs, and read as a skip.json of our own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selfspec_tune.draft import Draft
from selfspec_tune.draft.dialects import SKIP_CONFIG, Dialect, read_skip_set, split_key, to_dialect
from selfspec_tune.draft.skip_set import MOST_LAYERS
from selfspec_tune.errors import FileFormatError, SkipSetError, UnknownModelError, UnsupportedModelError, UsageError
from selfspec_tune.export.checkpoint import checkpoint_folder
from selfspec_tune.export.job import Job
from selfspec_tune.export.layout import read_outline
from selfspec_tune.files import read_json, read_settings
from selfspec_tune.models.aliases import close_aliases, resolve
from selfspec_tune.models.origin import find_origin
from selfspec_tune.results import DraftSettings, ModelInfo, Score, SkipConfig, SkipLayers


def export_dialect(source: Path, dialect: Dialect, *, task: str | None = None, model: str | None = None) -> Any:
    """The skip set of ``source``, a skip.json or any dialect's file, as a JSON value in ``dialect``.

    ``model`` names the model in the result; it is needed where ``source`` does not say
    which model, or how deep a model, it is for. ``task`` is needed by dialects that key
    by task. Raises `FileFormatError`, `SkipSetError` or `UnknownModelError`.
    """
    depth = None if model is None else known_num_layers(model)
    config = own_config(source)
    skip_set, _ = read_skip_set(source, num_layers=depth)
    name = model or (config and (config.model.name or config.model.id))
    if not name:
        raise UsageError(f"{source} does not say which model it is for; name it with `model`.")
    return to_dialect(skip_set, dialect, model_name=Path(name).name, task=task)


def own_config(source: Path) -> SkipConfig | None:
    """The file, where it is a skip.json of ours. Raises `FileFormatError` where there is none, or a damaged one."""
    file = Path(split_key(str(source))[0])
    try:
        value = read_json(file)
    except FileFormatError:
        if not file.is_file():
            raise
        return None  # a dialect that is no JSON, or nothing: its reader says which
    is_own = isinstance(value, dict) and value.get("schema") == SkipConfig.SCHEMA
    return SkipConfig.from_dict(value, origin=str(source)) if is_own else None


def known_num_layers(model: str) -> int:
    """A model's depth without loading it: from the alias table or a local ``config.json``.

    Raises `UnknownModelError` for anything else.
    """
    alias = resolve(model)
    if alias is not None:
        return alias.num_layers
    config = Path(model) / "config.json"
    if not config.is_file():
        close = close_aliases(model)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise UnknownModelError(
            f"The depth of {model!r} is not known here; expected an alias that `selfspec-tune models` "
            f"lists, or a local directory with a config.json.{hint}"
        )
    depth = read_settings(config).get("num_hidden_layers")
    if type(depth) is not int or not 1 <= depth <= MOST_LAYERS:
        raise UnknownModelError(
            f"{config} has no num_hidden_layers from 1 to {MOST_LAYERS}; expected a decoder-only language model."
        )
    return depth


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
        raise UsageError(f"{out} is there already. Give another `out`, or `force` to replace it.")
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

"""Drafts for other runtimes: written whole or not at all, with a manifest that says what they are."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.dialects import Dialect, read_skip_set
from selfspec_tune.errors import SelfSpecError, SkipSetError, UsageError
from selfspec_tune.export.checkpoint import checkpoint_folder, gguf_of, own_file
from selfspec_tune.export.decoding import MeasuredSampling, dropped, forecast, settings_of_folder, settings_of_gguf
from selfspec_tune.export.formats.gguf import write_gguf
from selfspec_tune.export.formats.gguf_file import GgufFile
from selfspec_tune.export.formats.hf import write_generate, write_whole_layers, write_zeroed
from selfspec_tune.export.formats.nas import write_nas
from selfspec_tune.export.job import Format, Job, Written
from selfspec_tune.export.layout import LayerBlock, read_outline
from selfspec_tune.export.manifest import MANIFEST, SCHEMA, VERSION, others_in
from selfspec_tune.export.skip_files import export_dialect, own_config
from selfspec_tune.files import read_object, storage_error, write_json_atomic
from selfspec_tune.models.origin import find_origin
from selfspec_tune.requests import DraftFormat, ExportRequest
from selfspec_tune.results import SkipConfig
from selfspec_tune.temporary import TemporaryFolder, hold, release, sweep, temporary_name

_CHECKPOINT = "CHECKPOINT"
_MODE_OF_FILES = 0o666  # without what only folders need
FORMATS: dict[DraftFormat, Format] = {
    DraftFormat.HF_DRAFT: Format("the model with fewer whole layers, for whatever loads it", write_whole_layers),
    DraftFormat.HF_ZERO: Format("the model with zeros for what is skipped: exact, saves nothing", write_zeroed),
    DraftFormat.NAS: Format("layers without attention or MLP: vLLM, SGLang, MLX-LM, transformers", write_nas),
    DraftFormat.GGUF: Format("llama.cpp; made from the target's GGUF file", write_gguf, needs_gguf=True),
    DraftFormat.TRANSFORMERS_GENERATE: Format(
        "code for model.generate(custom_generate=DIR): drafts with the model's own cache",
        write_generate,
        is_alone=False,
    ),
}
_SKIP_FILE = "skip.json"


def export_draft(request: ExportRequest) -> dict[str, Any]:
    """Write the draft and its manifest; the manifest.

    Raises:
        UsageError: ``out`` is there already, or the target's GGUF file is needed and not given.
        SkipSetError: the skip set does not fit the target, or not the format.
        UnsupportedModelError: the format cannot represent the target.
        StorageError: it cannot be written.
    """
    _check_free(request)
    made = FORMATS[request.format]
    with ExitStack() as stack:
        job = _job(request, made, stack)
        try:
            with TemporaryFolder(f".{request.out.name}.", ".tmp", parent=request.out.parent, mode=0o777) as temporary:
                mode = temporary.stat().st_mode
                if request.out.exists():
                    temporary.chmod(S_IMODE(request.out.stat().st_mode) | 0o700)
                written = made.write(job, temporary, request.out)
                manifest = _manifest(request, job, written, temporary)
                write_json_atomic(temporary / MANIFEST, manifest)
                _set_modes(temporary, request.out, mode & _MODE_OF_FILES)
                _put(temporary, request.out)
        except OSError as error:
            raise storage_error(request.out, error) from error
    return manifest


def _check_free(request: ExportRequest) -> None:
    out = request.out
    if out.is_symlink():
        raise UsageError(f"{out} is a symbolic link, which an export never follows. Give the folder itself.")
    if not out.exists():
        return
    if not request.force:
        raise UsageError(f"{out} is there already. Give another `out`, or `force` to replace an earlier export.")
    if not (out / MANIFEST).is_file() or read_object(out / MANIFEST).get("schema") != SCHEMA:
        raise UsageError(f"{out} holds no export of ours, so `force` does not replace it. Give another `out`.")
    if others := others_in(out):
        raise UsageError(
            f"{out} holds files that no export wrote ({', '.join(others[:3])}), so `force` does not replace it. Move "
            "them, or give another `out`."
        )


def _job(request: ExportRequest, made: Format, stack: ExitStack) -> Job:
    """What to write, with the target's files at hand until ``stack`` ends."""
    config = own_config(request.source)
    model = request.model or (config.model.id if config else "")
    gguf = request.gguf or gguf_of(model)
    model = model or (str(gguf) if made.needs_gguf and gguf else "")
    if not model:
        raise UsageError(f"{request.source} does not say which model it is for; name it with `model`.")
    if made.needs_gguf and gguf is None:
        raise UsageError(
            f"`to` {request.format} takes tokenizer and weights from the GGUF file that llama.cpp serves: give it with "
            "`gguf` FILE."
        )
    revision = request.revision or (config.model.revision if config and request.model is None else None)
    folder = None if made.needs_gguf else stack.enter_context(checkpoint_folder(model, revision))
    if folder is not None and made.is_alone:
        own_file(folder, "config.json")
    policy, vocabulary, is_standalone = DraftPolicy(), None, False
    if config is not None:
        skip_set = config.skip_set()
        draft = Draft.from_dict(skip_set, config.draft.model_dump())
        policy, vocabulary, is_standalone = draft.policy, draft.vocabulary, config.objective == "standalone"
    else:
        depth = read_outline(folder).num_layers if folder else GgufFile(gguf).num_layers if gguf else None
        skip_set, _ = read_skip_set(request.source, num_layers=depth)
    if request.draft_tokens is not None:
        policy = replace(policy, max_draft_tokens=request.draft_tokens)
    draft_tokens = request.draft_tokens or (forecast(config).draft_tokens if made.is_alone else policy.max_draft_tokens)
    job = Job(
        skip_set,
        model,
        folder,
        gguf if made.needs_gguf else None,
        request.weights,
        draft_tokens,
        policy,
        vocabulary,
        is_standalone,
        str(gguf) if made.needs_gguf else _named_in_lines(model),
        folder.name if folder is not None and find_origin(model).source == "hub" else None,
        MeasuredSampling.measured(config, _own_settings(folder, gguf)),
    )
    if not job.blocks:
        raise SkipSetError(f"{request.source} skips every sub-layer: nothing would be left to draft with.")
    if not skip_set.num_skipped:
        raise SkipSetError(f"{request.source} skips nothing: the draft would be the model itself, and as slow.")
    if folder is not None:
        _check_target(job, config, made)
    elif config is not None:
        _check_gguf(job, config)
    return job


def _own_settings(folder: Path | None, gguf: Path | None) -> dict[str, Any]:
    """What the target asks of decoding besides its weights."""
    if folder is not None:
        return settings_of_folder(folder)
    return settings_of_gguf(GgufFile(gguf).entries) if gguf else {}


def _named_in_lines(model: str) -> str:
    """How servers find the target; they load a checkpoint, not the GGUF file that a draft may be made from."""
    origin = find_origin(model)
    return _CHECKPOINT if origin.source == "gguf" else origin.location


def _fingerprint(job: Job, made: Format) -> str | None:
    """The target's; None where its weights cannot be read one by one and the format takes none of them."""
    try:
        return job.fingerprint
    except SelfSpecError:
        if made.is_alone:
            raise
        return None


def _check_target(job: Job, config: SkipConfig | None, made: Format) -> None:
    """That the weights at hand are those that the skip set was searched for, as far as the file says."""
    depth = job.outline.num_layers
    if depth != job.skip_set.num_layers:
        raise SkipSetError(
            f"{job.model} has {depth} layers, the skip set is for a model of {job.skip_set.num_layers}. "
            "Give the model that was searched with `model`."
        )
    if config is None:
        return
    found = _fingerprint(job, made)
    if found not in (None, config.model.fingerprint):
        raise SkipSetError(
            f"The skip set was searched for {config.model.id} (fingerprint {config.model.fingerprint}); {job.model} is "
            f"another model (fingerprint {found}). Give the model that was searched with `model`."
        )


def _check_gguf(job: Job, config: SkipConfig) -> None:
    """That the GGUF file holds as many weights as the model that was searched, whose fingerprint is of other bytes."""
    assert job.gguf is not None
    stated = config.model.parameters
    if stated is None:
        return
    tensors = GgufFile(job.gguf).tensors
    found = sum(int(tensor.n_elements) for name, tensor in tensors.items() if not name.startswith("rope_"))
    head = tensors.get("output.weight")  # which a file may hold beside an embedding that it is tied to
    if stated not in (found, found - (int(head.n_elements) if head is not None else 0)):
        raise SkipSetError(
            f"{job.gguf} holds {found} weights; {config.model.id}, which was searched, has {stated}. Give the GGUF "
            "file of that model."
        )


def _manifest(request: ExportRequest, job: Job, written: Written, folder: Path) -> dict[str, Any]:
    config, made = own_config(request.source), FORMATS[request.format]
    notes = [*written.notes]
    if made.is_alone:
        notes += [forecast(config).text]
    notes += [*dropped(config), *job.sampling.notes]
    if any(_CHECKPOINT in line for line in written.launch.values()):
        notes += [f"{_CHECKPOINT} in the lines stands for the target's checkpoint in Hugging Face's format."]
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    found = _fingerprint(job, made) if job.folder else config.model.fingerprint if config else None
    if found is None and config is not None:
        notes += ["The target's weights could not be compared with those that were searched."]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "format": request.format.value,
        "model": job.model,
        "revision": job.revision,
        "gguf": str(job.gguf.absolute()) if job.gguf else None,
        "model_fingerprint": found,
        "skip": job.skip_set.to_dict(),
        "read_prompts": sorted(config.read_prompts) if config else [],
        "layers": [_layer_record(block) for block in job.blocks],
        "draft_bytes": written.weight_bytes,
        "target_bytes": _target_bytes(job, made),
        "draft_tokens": job.draft_tokens,
        "settings": dict(written.settings),
        "sampling": job.sampling.recorded,
        "generation_config": dict(job.sampling.ignored),
        "launch": dict(written.launch),
        "notes": notes,
        "files": files,
    }


def _target_bytes(job: Job, made: Format) -> int | None:
    """Of the target's weights; None where no draft's are to be compared with them."""
    if job.folder is None and job.gguf:
        return job.gguf.stat().st_size
    return job.checkpoint.num_bytes if made.is_alone else None


def _layer_record(block: LayerBlock) -> dict[str, int | None]:
    return {"attention": block.attention, "mlp": block.mlp}


def _set_modes(folder: Path, out: Path, mode: int) -> None:
    """Give every file the ``mode`` that new files get here, or that of the file in ``out`` that it replaces."""
    for file in folder.rglob("*"):
        if file.is_file():
            old = out / file.relative_to(folder)
            file.chmod(S_IMODE(old.stat().st_mode) if old.is_file() else mode)


def _put(temporary: Path, out: Path) -> None:
    """Move the folder into its place; an earlier export there goes once the new one is whole."""
    if out.exists():
        held = hold(out)
        old = out.with_name(temporary_name(f".{out.name}.", ".old"))
        out.rename(old)
        try:
            temporary.rename(out)
        except OSError:
            old.rename(out)
            raise
        finally:
            release(held)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(out)
    sweep(out.parent, f".{out.name}.", ".old")


def export(
    source: str | os.PathLike[str],
    to: str,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | None = None,
    task: str | None = None,
    **options: Any,
) -> Any:
    """Write a skip set in another project's format, or as a draft that another runtime runs.

    Args:
        source: what `search` returned, a study, a skip.json, or another project's file.
        to: a skip-set dialect, or a draft: hf-draft, hf-zero, nas, gguf or transformers-generate.
        out: the folder of a draft, which is made; the file of a dialect, None: none is written.
        model: the target, where ``source`` does not lead to it.
        task: for dialects that key skip sets by it.
        options: of a draft, further fields of `ExportRequest`.

    Returns:
        The draft's manifest, or the dialect's JSON value.

    Raises:
        UsageError: ``to`` is no format, an option means nothing, ``out`` is there already.
        SelfSpecError: the format cannot hold this draft, or it cannot be written.
    """
    path = Path(source)
    path = path / _SKIP_FILE if path.is_dir() else path
    if to in list(Dialect):
        if options:
            raise UsageError(f"{to} writes a file of skips alone, so {', '.join(options)} means nothing. Leave it out.")
        value = export_dialect(path, Dialect(to), task=task, model=model)
        if out is not None:
            if Path(out).exists():
                raise UsageError(f"{os.fspath(out)} is there already. Give another name.")
            write_json_atomic(out, value)
        return value
    if to not in list(DraftFormat):
        raise UsageError(f"{to!r} is no format; expected one of {', '.join((*Dialect, *DraftFormat))}.")
    if out is None:
        raise UsageError(f"{to} makes a folder: name it with out.")
    return export_draft(ExportRequest(path, DraftFormat(to), Path(out), model, **options))

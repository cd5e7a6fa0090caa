"""Drafts for other runtimes: written whole or not at all, with a manifest that says what they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.dialects import read_skip_set
from selfspec_tune.errors import SkipSetError
from selfspec_tune.export.checkpoint import PLACEHOLDER
from selfspec_tune.export.decoding import MeasuredSampling, dropped
from selfspec_tune.export.folder import check_free, put, set_modes
from selfspec_tune.export.format import ExportFormat, Written
from selfspec_tune.export.formats import export_format
from selfspec_tune.export.job import Job, Target
from selfspec_tune.export.skip_files import own_config
from selfspec_tune.files import storage_error
from selfspec_tune.requests import ExportRequest
from selfspec_tune.results import MANIFEST, ExportManifest, SkipConfig, SkipLayers
from selfspec_tune.results.export_manifest import ExportedLayer, ExportSampling
from selfspec_tune.temporary import TemporaryFolder

_MODE_OF_FILES = 0o666  # without what only folders need


def export_draft(request: ExportRequest) -> ExportManifest:
    """Write the draft and its manifest; the manifest.

    Raises:
        UsageError: no such format is registered, an option means nothing to it, ``out`` is there already, or the
            request does not lead to the target.
        SkipSetError: the skip set does not fit the target, or not the format.
        UnsupportedModelError: the format cannot represent the target.
        StorageError: it cannot be written.
    """
    made = export_format(request.format)
    made.check(request)
    check_free(request.out, force=request.force)
    config = own_config(request.source)
    with ExitStack() as stack:
        target = made.target(request, config, stack)
        job = _job(request, made, target, config)
        try:
            with TemporaryFolder(f".{request.out.name}.", ".tmp", parent=request.out.parent, mode=0o777) as temporary:
                mode = temporary.stat().st_mode
                if request.out.exists():
                    temporary.chmod(S_IMODE(request.out.stat().st_mode) | 0o700)
                written = made.write(job, temporary, request.out)
                manifest = _manifest(made, job, config, written, temporary)
                manifest.save(temporary / MANIFEST)
                set_modes(temporary, request.out, mode & _MODE_OF_FILES)
                put(temporary, request.out)
        except OSError as error:
            raise storage_error(request.out, error) from error
    return manifest


def _job(request: ExportRequest, made: ExportFormat[Any], target: Target, config: SkipConfig | None) -> Job[Any]:
    """What to write."""
    policy, vocabulary, experts, is_standalone = DraftPolicy(), None, None, False
    if config is not None:
        skip_set = config.skip_set()
        draft = Draft.from_dict(skip_set, config.draft.model_dump())
        policy, vocabulary, experts = draft.policy, draft.vocabulary, draft.experts
        is_standalone = config.objective == "standalone"
    else:
        skip_set, _ = read_skip_set(request.source, num_layers=target.num_layers)
    if request.draft_tokens is not None:
        policy = replace(policy, max_draft_tokens=request.draft_tokens)
    job = Job(
        skip_set,
        target,
        request.weights or "copy",
        request.draft_tokens or made.forecast(config, policy).draft_tokens,
        policy,
        vocabulary,
        experts,
        is_standalone,
        MeasuredSampling.measured(config, target.own_settings),
    )
    if not job.blocks:
        raise SkipSetError(f"{request.source} skips every sub-layer: nothing would be left to draft with.")
    if not skip_set.num_skipped:
        raise SkipSetError(f"{request.source} skips nothing: the draft would be the model itself, and as slow.")
    target.check(skip_set, config)
    return job


def _manifest(
    made: ExportFormat[Any], job: Job[Any], config: SkipConfig | None, written: Written, folder: Path
) -> ExportManifest:
    target: Target = job.target
    expected = made.forecast(config, job.policy).text
    notes = [
        *written.notes,
        *([expected] if expected else []),
        *dropped(config, keeps_experts=made.keeps_experts),
        *job.sampling.notes,
    ]
    if any(PLACEHOLDER in line for line in written.launch.values()):
        notes += [f"{PLACEHOLDER} in the lines stands for the target's checkpoint in Hugging Face's format."]
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    found = target.fingerprint(config)
    if found is None and config is not None:
        notes += ["The target's weights could not be compared with those that were searched."]
    return ExportManifest(
        format=made.name,
        **target.identity,
        model_fingerprint=found,
        skip=SkipLayers.model_validate(job.skip_set.to_dict()),
        read_prompts=sorted(config.read_prompts) if config else [],
        layers=[ExportedLayer(attention=block.attention, mlp=block.mlp) for block in job.blocks],
        draft_bytes=written.weight_bytes,
        target_bytes=target.num_bytes if made.is_alone else None,
        draft_tokens=job.draft_tokens,
        settings=dict(written.settings),
        sampling=ExportSampling(**job.sampling.recorded),
        generation_config=dict(job.sampling.ignored),
        launch=dict(written.launch),
        notes=notes,
        files=files,
    )

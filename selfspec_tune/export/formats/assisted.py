"""What the formats share whose drafts are checkpoints: transformers drafts with them by ``assistant_model``."""

from __future__ import annotations

import shutil
from abc import ABC
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfspec_tune.export.checkpoint import FILES, is_checkpoint_file
from selfspec_tune.export.format import ExportFormat
from selfspec_tune.export.job import CheckpointTarget, Job, checkpoint_target
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import ExportRequest, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import ExportManifest, SkipConfig

if TYPE_CHECKING:
    from selfspec_tune.export.runtimes.completion import Runtime, TimedRuntime
    from selfspec_tune.export.simulation import Simulation
    from selfspec_tune.models import LoadedModel


class AssistedFormat(ExportFormat[CheckpointTarget], ABC):
    """A checkpoint that drafts. ``has_own_code``: whether we write modelling code into it, which is then run."""

    made_from = "the checkpoint"
    options = frozenset({"revision"})
    files = FILES
    runtime = RuntimeName.TRANSFORMERS
    has_own_code: ClassVar[bool] = False

    def target(self, request: ExportRequest, config: SkipConfig | None, stack: ExitStack) -> CheckpointTarget:
        return checkpoint_target(request, config, stack)

    def owns(self, name: str) -> bool:
        return name in self.files or is_checkpoint_file(name)

    def pair(self, loaded: LoadedModel, folder: Path, manifest: ExportManifest) -> tuple[Runtime, Simulation]:
        from selfspec_tune.export.runtimes.hf import AssistedGeneration
        from selfspec_tune.export.simulation import server_loop

        tokens = manifest.draft_tokens
        assisted = AssistedGeneration(loaded, folder, tokens, has_own_code=self.has_own_code)
        skip_set, experts = manifest.skip_set(), manifest.experts
        return assisted, server_loop(loaded, skip_set, tokens, first_is_plain=False, experts=experts)

    def timed(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> TimedRuntime:
        from selfspec_tune.export.runtimes.hf import TimedAssisted

        return TimedAssisted(request, manifest, reporter, has_own_code=self.has_own_code)


def copy_beside(job: Job[CheckpointTarget], folder: Path) -> None:
    """The tokenizer's files and what generation reads, as files of our own."""
    for file in job.target.checkpoint.beside:
        shutil.copyfile(file, folder / file.name)


def assisted_launch(job: Job[CheckpointTarget], final: Path, *, remote_code: bool = False) -> dict[str, str]:
    """How transformers drafts with the folder."""
    trust = ", trust_remote_code=True" if remote_code else ""
    is_listed = job.target.checkpoint.config.get("model_type") != "mistral3"
    auto = "AutoModelForCausalLM" if is_listed else "AutoModelForImageTextToText"
    load = f"{auto}.from_pretrained({str(final)!r}{trust})"
    return {
        "transformers": f"draft = {load}; draft.generation_config.update(num_assistant_tokens={job.draft_tokens}, "
        f"num_assistant_tokens_schedule='constant', assistant_confidence_threshold={job.exit_threshold:g}); "
        f"model.generate(**inputs, assistant_model=draft, {job.sampling.transformers})"
    }

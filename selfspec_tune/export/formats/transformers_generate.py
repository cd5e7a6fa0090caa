"""Code for ``model.generate(custom_generate=DIR)`` of transformers, which drafts with the model's own cache."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.export.decoding import Forecast
from selfspec_tune.export.format import ExportFormat, Written, not_ours
from selfspec_tune.export.job import CheckpointTarget, Job, checkpoint_target
from selfspec_tune.files import read_text, write_atomic
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import ExportRequest, RuntimeBenchRequest, RuntimeName
from selfspec_tune.results import ExportManifest, SkipConfig

if TYPE_CHECKING:
    from selfspec_tune.export.runtimes.completion import Runtime, TimedRuntime
    from selfspec_tune.export.simulation import Simulation
    from selfspec_tune.models import LoadedModel

_FILE = "custom_generate/generate.py"
_TEMPLATE = Path(__file__).parent / "generate_files" / "generate.py"
_PLACE = "SETTINGS = {}"
_SETTINGS = "SETTINGS = json.loads("
_THRESHOLD = 0.8  # where the policy needs costs measured on the user's machine


class TransformersGenerate(ExportFormat[CheckpointTarget]):
    """``custom_generate/generate.py``: the skip set, the policy and the loop, without need of this package."""

    name = "transformers-generate"
    about = "code for model.generate(custom_generate=DIR): drafts with the model's own cache"
    made_from = "the checkpoint"
    options = frozenset({"revision"})
    is_alone = False
    keeps_experts = True
    files = frozenset({_FILE})
    runtime = RuntimeName.TRANSFORMERS

    def target(self, request: ExportRequest, config: SkipConfig | None, stack: ExitStack) -> CheckpointTarget:
        return checkpoint_target(request, config, stack, needs_weights=False)

    def write(self, job: Job[CheckpointTarget], folder: Path, final: Path) -> Written:
        silence, skip_set = job.target.outline.silence, job.skip_set
        policy, notes = _carried(job.policy)
        settings = {
            "model": job.target.model,
            "num_layers": skip_set.num_layers,
            "skipped": [path for index in skip_set.indices for path in silence[index]],
            "first_attention": silence[0],
            "vocabulary": job.vocabulary,
            "experts": job.experts,
            "max_draft_tokens": policy.max_draft_tokens,
            "exit_threshold": policy.exit_threshold,
        }
        write_atomic(folder / _FILE, _code_of(settings))
        how = f"custom_generate={str(final)!r}, trust_remote_code=True, {job.sampling.transformers}"
        line = f"model.generate(**inputs, {how})"
        carried = {name: settings[name] for name in ("max_draft_tokens", "exit_threshold", "vocabulary")}
        carried |= job.expert_settings
        return Written(0, {"transformers": line}, notes, carried)

    def code(self, folder: Path) -> Mapping[str, str]:
        file = folder / _FILE
        return {_FILE: _rewritten(file) if file.is_file() else ""}

    def forecast(self, config: SkipConfig | None, policy: DraftPolicy) -> Forecast:
        return Forecast(policy.max_draft_tokens, "")

    def pair(self, loaded: LoadedModel, folder: Path, manifest: ExportManifest) -> tuple[Runtime, Simulation]:
        from selfspec_tune.export.runtimes.hf import CustomGeneration
        from selfspec_tune.export.simulation import shared_loop

        policy = DraftPolicy(PolicyKind.THRESHOLD, manifest.draft_tokens, manifest.exit_threshold)
        vocabulary = manifest.settings["vocabulary"]
        ids = None if vocabulary is None else int(vocabulary)
        draft = Draft(manifest.skip_set(), policy, vocabulary=ids, experts=manifest.experts)
        return CustomGeneration(loaded, folder), shared_loop(loaded, draft)

    def timed(self, request: RuntimeBenchRequest, manifest: ExportManifest, reporter: Reporter) -> TimedRuntime:
        from selfspec_tune.export.runtimes.hf import TimedCustomGeneration

        return TimedCustomGeneration(request, manifest, reporter)


FORMAT = TransformersGenerate()


def _code_of(settings: Mapping[str, Any]) -> str:
    """The loop with its settings: JSON in a string, for true, false and null are no Python."""
    code = read_text(_TEMPLATE).replace(_PLACE, f"SETTINGS = json.loads({json.dumps(settings)!r})", 1)
    return code.replace("import inspect\n", "import inspect\nimport json\n", 1)


def _rewritten(file: Path) -> str:
    """What an export with the file's own settings writes."""
    lines = [line for line in read_text(file).splitlines() if line.startswith(_SETTINGS)]
    try:
        return _code_of(json.loads(ast.literal_eval(lines[0].removeprefix(_SETTINGS).removesuffix(")"))))
    except (IndexError, ValueError, SyntaxError, TypeError) as error:
        raise not_ours(file) from error


def _carried(policy: DraftPolicy) -> tuple[DraftPolicy, tuple[str, ...]]:
    """A policy that needs to measure nothing, and what a user should know of it."""
    if policy.kind is PolicyKind.FIXED:
        return DraftPolicy(PolicyKind.THRESHOLD, policy.max_draft_tokens, 0.0), ()
    if policy.kind is PolicyKind.THRESHOLD:
        return policy, ()
    threshold = policy.exit_threshold if policy.kind is PolicyKind.ADAPTIVE else _THRESHOLD
    note = f"drafts while it is {threshold:.0%} sure, up to {policy.max_draft_tokens} tokens: {policy.kind} stays here"
    return DraftPolicy(PolicyKind.THRESHOLD, policy.max_draft_tokens, threshold), (note,)

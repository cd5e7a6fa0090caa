"""Self-speculation inside transformers: a directory for ``model.generate(custom_generate=…)``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.draft import DraftPolicy, PolicyKind
from selfspec_tune.export.job import Job, Written
from selfspec_tune.files import read_text, write_atomic

_TEMPLATE = Path(__file__).parent / "generate_files" / "generate.py"
_PLACE = "SETTINGS = {}"
_THRESHOLD = 0.8  # where the policy needs costs measured on the user's machine


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

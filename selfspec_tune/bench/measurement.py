"""What defines a measurement, as plain values that a log keeps, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from selfspec_tune import __version__
from selfspec_tune.bench.contest import Contest
from selfspec_tune.files import short_hash
from selfspec_tune.measure.arms import Arm
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.provenance import cpu_model, package_version
from selfspec_tune.requests import BenchRequest

_PACKAGES = ("torch", "transformers")
# What says where the prompts come from, not what they are: their hashes do, and those of their tokens.
_ORIGIN = ("source", "num_prompts", "tasks", "template_date")


def measurement(
    workload: Workload,
    items: Mapping[str, Sequence[WorkItem]],
    request: BenchRequest,
    *,
    sweep: str | None = None,
) -> dict[str, Any]:
    """Everything that must be the same in every session of a bench; ``items`` by point of the sweep.

    The first entries are the ones a user would change on purpose: differences are named in this order.
    """
    loaded = workload.loaded
    options = {name: value for name, value in workload.options.to_dict().items() if name not in _ORIGIN}
    first = next(iter(items.values()))
    return {
        "sweep": sweep,
        "points": sorted(items),
        "model fingerprint": loaded.fingerprint,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "runner": workload.runner.name,
        "prompts": options,
        "prompt hashes": [item.prompt.hash for item in first],
        "prompt tokens": {point: _tokens_hash(of_point) for point, of_point in items.items()},
        "rounds": request.rounds,
        "reference prompts": min(request.reference_prompts, len(first)),
        "threads": torch.get_num_threads(),
        "machine": {
            "cpu": cpu_model(),
            "gpu": torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        },
        "packages": {name: package_version(name) for name in _PACKAGES},
        "selfspec-tune": __version__,
    }


def methods_of(contests: Sequence[Contest]) -> dict[str, dict[str, Any]]:
    """What every arm is, by its id; in a sweep by its id and the value."""
    return {_name(contest, arm): _definition(arm) for contest in contests for arm in contest.arms}


def _tokens_hash(items: Sequence[WorkItem]) -> str:
    return short_hash("\n".join(" ".join(map(str, item.tokens)) for item in items))


def _name(contest: Contest, arm: Arm) -> str:
    return arm.id if contest.point is None else f"{arm.id} at {contest.point:g}"


def _definition(arm: Arm) -> dict[str, Any]:
    draft = None
    if arm.draft is not None:
        draft = {"skip set": str(arm.draft.skip_set), **arm.draft.to_dict()}
    defined = {"name": arm.name, "description": arm.description, "draft": draft}
    return defined if arm.model is None else defined | {"dtype": str(arm.model.dtype).removeprefix("torch.")}

"""Who competes under ``bench --rivals``: what a user would pick instead of our skip set."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.dialects import Dialect
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.measure.arms import Arm, generate_arm, self_speculative_arm
from selfspec_tune.measure.rivals import (
    DRAFT_MODEL,
    draft_model_arm,
    early_exit_arm,
    guarded,
    prompt_lookup_arm,
    unavailable_arm,
)
from selfspec_tune.measure.workload import Workload
from selfspec_tune.models import load_model
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, ModelOptions
from selfspec_tune.skip_set import SkipSet

UNIFORM = "uniform"
EXIT_FRACTION = 3


@dataclass(frozen=True, slots=True)
class System:
    """Another self-speculative system: how it decides when a draft ends, and where that was read."""

    name: str
    policy: DraftPolicy
    description: str


SELF_SD = System(
    "self-sd",
    DraftPolicy(
        PolicyKind.ADAPTIVE,
        max_draft_tokens=12,
        exit_threshold=0.6,
        target_acceptance=0.9,
        step=0.01,
        acceptance_momentum=0.5,
        threshold_momentum=0.9,
    ),
    # evaluate_sum.ipynb and evaluate_code.ipynb of dilab-zju/self-speculative-decoding; there the
    # threshold is carried over from answer to answer, here every answer begins with the same one.
    "Self-SD's policy: adaptive threshold from .6, at most 12 tokens, as in its published evaluation",
)
SWIFT = System(
    "swift",
    DraftPolicy(PolicyKind.THRESHOLD, max_draft_tokens=25, exit_threshold=0.8),
    # swift_draft of hemingkx/SWIFT. It also verifies the next likeliest tokens beside the drafted
    # chain in one tree; here the chain alone is drafted.
    "SWIFT's policy: fixed threshold .8, at most 25 tokens, as in its code; the chain without its tree",
)
SYSTEMS = {Dialect.SELF_SD: SELF_SD, Dialect.SWIFT: SWIFT}


def system_of(dialect: str | None) -> System | None:
    """The system whose files are in ``dialect``, if its policy is known here."""
    return next((system for known, system in SYSTEMS.items() if known == dialect), None)


def rival_arms(
    workload: Workload, main: Arm, request: BenchRequest, loading: ModelOptions, reporter: Reporter
) -> list[Arm]:
    """Every rival of ``main``; those that cannot run here are among them and say why when they are asked to.

    Raises `UsageError` where the exit layer does not fit the model, or the draft model's name
    leads nowhere.
    """
    arms = [
        guarded(generate_arm(workload)),
        prompt_lookup_arm(workload),
        early_exit_arm(workload, exit_layer(request.early_exit, workload.loaded.num_layers)),
    ]
    if request.draft_model is not None:
        arms.append(_draft_model(workload, request.draft_model, loading, reporter))
    return [*arms, uniform_arm(workload, main)]


def exit_layer(asked: int | None, num_layers: int) -> int:
    """The layer to leave after: a third of the model unless one was asked for. Raises `UsageError`."""
    if asked is None:
        return max(1, round(num_layers / EXIT_FRACTION))
    if not 1 <= asked < num_layers:
        raise UsageError(
            f"--early-exit {asked}: the model has {num_layers} layers; expected 1 to {num_layers - 1}, "
            "the number of layers that draft."
        )
    return asked


def uniform_arm(workload: Workload, main: Arm) -> Arm:
    """As many sub-layers as ``main`` skips, evenly spread, under its policy; kept ones in full precision."""
    assert main.draft is not None
    skip_set = main.draft.skip_set
    # The first attention stays in: it is untouchable in every model tried.
    counts = min(len(skip_set.attention), skip_set.num_layers - 1), len(skip_set.mlp)
    uniform = SkipSet.uniform(skip_set.num_layers, *counts)
    draft = Draft(uniform, main.draft.policy, vocabulary=main.draft.vocabulary)
    if uniform.is_empty:
        return unavailable_arm(UNIFORM, "the measured draft skips nothing, so there is nothing to spread evenly.")
    return self_speculative_arm(workload, draft, UNIFORM, UNIFORM)


def _draft_model(workload: Workload, name: str, loading: ModelOptions, reporter: Reporter) -> Arm:
    """The draft model in the format and on the device of the model itself."""
    loaded = workload.loaded
    reporter.stage("load", f"{name}, to draft")
    try:
        drafter = load_model(
            name,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            trust_remote_code=loading.trust_remote_code,
            allow_pickle=loading.allow_pickle,
        )
    except UsageError:
        raise
    except SelfSpecError as error:
        return unavailable_arm(DRAFT_MODEL, str(error), description=f"drafted by {name}")
    return draft_model_arm(workload, drafter)

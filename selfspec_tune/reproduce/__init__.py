"""A published study run again: its steps in processes of their own, its figures judged by intervals."""

from selfspec_tune.reproduce.plan import PLAN_FILE, Claim, Plan, Step
from selfspec_tune.reproduce.run import Judged, Reproduction, run_reproduction
from selfspec_tune.reproduce.steps import Command, check_inputs, commands_of
from selfspec_tune.reproduce.verdicts import Verdict

__all__ = [
    "PLAN_FILE",
    "Claim",
    "Command",
    "Judged",
    "Plan",
    "Reproduction",
    "Step",
    "Verdict",
    "check_inputs",
    "commands_of",
    "run_reproduction",
]

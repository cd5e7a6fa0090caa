"""Draft policies at work: what each decides round by round within one generation."""

from selfspec_tune.policies.start import start
from selfspec_tune.policies.state import PLAIN, Plan, PolicyState

__all__ = ["PLAIN", "Plan", "PolicyState", "start"]

"""The search for a skip set: calibrate, rank, propose, measure, select, test."""

from selfspec_tune.search.compare import Comparison, run_comparison
from selfspec_tune.search.plan import SearchPlan, plan_search
from selfspec_tune.search.run import SearchOutcome, run_search

__all__ = ["Comparison", "SearchOutcome", "SearchPlan", "plan_search", "run_comparison", "run_search"]

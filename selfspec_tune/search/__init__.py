"""The search for a skip set: calibrate, rank, propose, measure, select, test."""

from selfspec_tune.callable_package import make_callable
from selfspec_tune.search.compare import Comparison, run_comparison
from selfspec_tune.search.function import search
from selfspec_tune.search.per_task import PerTask, plan_per_task, run_per_task
from selfspec_tune.search.plan import SearchPlan, plan_search
from selfspec_tune.search.run import SearchOutcome, run_search

__all__ = [
    "Comparison",
    "PerTask",
    "SearchOutcome",
    "SearchPlan",
    "plan_per_task",
    "plan_search",
    "run_comparison",
    "run_per_task",
    "run_search",
    "search",
]

make_callable(__name__, search)

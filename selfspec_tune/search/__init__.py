"""The search for a skip set: calibrate, rank, propose, measure, select, test."""

from __future__ import annotations

from selfspec_tune.callable_package import make_callable
from selfspec_tune.search.plan import SearchPlan, plan_search
from selfspec_tune.search.run import SearchOutcome, run_search, search

__all__ = ["SearchOutcome", "SearchPlan", "plan_search", "run_search", "search"]

make_callable(__name__, search)

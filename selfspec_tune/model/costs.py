"""What a draft's steps cost here: as its study measured them, or timed anew where that was elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfspec_tune.bench.run import bench_provenance
from selfspec_tune.bench.sources import Source
from selfspec_tune.costs import StepCosts
from selfspec_tune.cpu_quota import cpu_quota
from selfspec_tune.draft import Draft
from selfspec_tune.measure.workload import Workload
from selfspec_tune.run_logs import first_difference
from selfspec_tune.search.ranking_file import read_ranking
from selfspec_tune.search.sessions import place_of

_ENGINE = ("runner", "dtype", "device")


def step_costs(workload: Workload, draft: Draft, found: Source | None, notice: Callable[[str], None]) -> StepCosts:
    """Seconds of the draft's steps; ``notice`` is told why they are timed, where a study had measured some."""
    if found is None or found.config is None:
        return workload.step_costs(draft)
    file = Path(found.label).parent / "ranking.json"
    reason = _elsewhere(workload, found.config.provenance) if file.is_file() else "its study's step times are not by it"
    if reason is None:
        measured = read_ranking(file, workload.loaded.num_layers).costs
        try:
            return measured.steps(draft)
        except ValueError as error:  # another precision was asked for
            reason = str(error)
    notice(f"the draft's steps are timed here, for a second or two: {reason}")
    return workload.step_costs(draft)


def _elsewhere(workload: Workload, provenance: dict[str, Any]) -> str | None:
    """The first condition that the study measured under and that is another here; None where there is none."""
    here = bench_provenance(workload, None, cpu_quota=cpu_quota())
    then = place_of(provenance) | {name: provenance[name] for name in _ENGINE if name in provenance}
    now = place_of(here) | {name: here[name] for name in _ENGINE}
    if not then:
        return "nothing says where the study measured"
    difference = first_difference(then, {name: now.get(name) for name in then})
    return None if difference is None else f"the study measured elsewhere ({difference})"

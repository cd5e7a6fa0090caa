"""What this machine can do, and what the engine makes of it."""

from __future__ import annotations

from datetime import UTC, datetime

from selfspec_tune.doctor.machine import check_machine, describe_machine
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import DoctorRequest
from selfspec_tune.results.diagnosis import Diagnosis

__all__ = ["run_doctor"]


def run_doctor(request: DoctorRequest, reporter: Reporter) -> Diagnosis:
    """Look at the machine; with a model, time its steps beside what the memory can deliver.

    Raises `UsageError` for a context longer than the model's or a skip set that does not fit
    it, and what loading a model raises.
    """
    reporter.stage("machine", "what is here")
    found = Diagnosis(
        created=datetime.now(UTC).isoformat(timespec="seconds"), machine=describe_machine(), checks=check_machine()
    )
    if request.model is None:
        return found
    from selfspec_tune.doctor.examination import examine  # loads the engine, which the machine part does not need

    return examine(found, request, request.model, reporter)

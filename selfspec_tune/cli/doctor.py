"""``selfspec-tune doctor``: what this machine can do, and what the engine makes of it."""

from __future__ import annotations

from selfspec_tune.arguments import parse_contexts
from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import DoctorRequest, ModelOptions


@command("doctor")
def doctor(asked: Asked) -> None:
    """Check this machine; with a model, measure how near its steps come to what the memory can deliver.

    Takes up to about two minutes with a model; a quiet machine gives steady figures.
    """
    from selfspec_tune.report.doctor import print_diagnosis

    request = _request(asked)
    from selfspec_tune.doctor import run_doctor

    with output.progress(quiet=asked["quiet"]) as reporter:
        found = run_doctor(request, reporter)
    if asked["json"]:
        output.print_json(found.to_dict())
    else:
        print_diagnosis(output.result_console(), found)


def _request(asked: Asked) -> DoctorRequest:
    loading = asked.of(ModelOptions)
    if asked["model"] is None and loading:
        names = ", ".join(f"`{name}`" for name in loading)
        raise UsageError(f"{names}: expected with --model only. Name the model whose steps are to be timed.")
    model = None if asked["model"] is None else ModelOptions(name=asked["model"], **loading)
    return DoctorRequest(model, asked["skip_set"], parse_contexts(asked["contexts"]))

"""``selfspec-tune doctor``: what this machine can do, and what the engine makes of it."""

from __future__ import annotations

from typing import Annotated

import typer

from selfspec_tune.arguments import given, parse_contexts
from selfspec_tune.cli import options, output
from selfspec_tune.cli.exits import at_edge
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import DoctorRequest, ModelOptions


@at_edge()
def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Model to time: alias, hub id, local directory or .gguf file.",
            show_default="the machine alone",
            autocompletion=options.complete_model,
        ),
    ] = None,
    skip_set: Annotated[
        str | None,
        typer.Option(
            "--skip-set",
            metavar="TEXT|FILE",
            help="What drafts: a skip set such as 'attn 2-9 · mlp 3,5', or a file of any dialect.",
            show_default="every third layer",
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="N,N…",
            help="Tokens of context to time at, the first most thoroughly.",
            show_default="128,512,2048,8192, as far as model and time allow",
        ),
    ] = None,
    revision: options.Revision = None,
    dtype: options.DtypeName = None,
    device: options.Device = None,
    runner: options.RunnerName = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check this machine; with a model, measure how near its steps come to what the memory can deliver.

    Takes up to about two minutes with a model; a quiet machine gives steady figures.
    """
    from selfspec_tune.report.doctor import print_diagnosis

    loading = given(dtype=dtype, device=device, runner=runner, revision=revision)
    loading |= given(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if model is None and loading:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in loading)
        raise UsageError(f"{names}: expected with --model only. Name the model whose steps are to be timed.")
    request = DoctorRequest(
        model=None if model is None else ModelOptions(name=model, **loading),
        skip_set=skip_set,
        contexts=parse_contexts(contexts),
    )
    from selfspec_tune.doctor import run_doctor

    with output.progress(quiet=quiet) as reporter:
        found = run_doctor(request, reporter)
    if json:
        output.print_json(found.to_dict())
    else:
        print_diagnosis(output.result_console(), found)

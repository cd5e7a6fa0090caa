"""``selfspec-tune bench``: measure skip sets on prompts that no search has read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune.cli import options, output
from selfspec_tune.cli.edge import at_edge
from selfspec_tune.cli.values import given, parse_precision
from selfspec_tune.requests import BenchRequest

if TYPE_CHECKING:
    from selfspec_tune.results import BenchResult


@at_edge()
def bench(
    skip_files: options.SkipFiles = None,
    model: options.ModelName = None,
    skip_set: options.SkipSets = None,
    prompts: options.PromptSource = None,
    num_prompts: options.NumPrompts = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    template: options.TemplateName = None,
    seed: options.Seed = None,
    dtype: options.DtypeName = None,
    device: options.Device = None,
    runner: options.RunnerName = None,
    policy: options.BenchPolicy = None,
    ngram: options.BenchNgram = None,
    draft_precision: options.BenchPrecision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    rounds: options.Rounds = 1,
    reference_prompts: options.ReferencePrompts = 8,
    no_references: options.NoReferences = False,
    allow_calibration: options.AllowCalibration = False,
    csv: options.Csv = None,
    parquet: options.Parquet = None,
    spec_bench: options.SpecBench = None,
    out: options.BenchFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure skip sets against plain decoding, in interleaved pairs.

    Model and prompts are those of the study unless other ones are given.
    """
    from selfspec_tune.bench import run_bench

    output.prepare_outputs(csv, parquet, spec_bench, out)
    loading = given(name=model, dtype=dtype, device=device, runner=runner)
    loading |= given(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    decoding = given(source=prompts, num_prompts=num_prompts, max_new_tokens=max_new_tokens, template=template)
    decoding |= given(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    drafting = given(policy=policy, precision=parse_precision(draft_precision))
    if ngram is not None:
        drafting["ngram"] = ngram
    request = BenchRequest(
        skip_files=tuple(skip_files or ()),
        skip_sets=tuple(skip_set or ()),
        model_overrides=tuple(loading.items()),
        prompt_overrides=tuple(decoding.items()),
        draft_overrides=tuple(drafting.items()),
        studies=options.STUDIES,
        rounds=rounds,
        reference_prompts=reference_prompts,
        uniform_and_random=not no_references,
        allow_calibration=allow_calibration,
    )
    with output.progress(quiet=quiet) as reporter:
        result = run_bench(request, reporter)
    _print(result, json=json)  # first, so that a full disk loses no measurement
    _write(result, csv=csv, parquet=parquet, spec_bench=spec_bench, out=out)


def _write(
    result: BenchResult, *, csv: Path | None, parquet: Path | None, spec_bench: Path | None, out: Path | None
) -> None:
    from selfspec_tune import export
    from selfspec_tune.report.verdict import headline_method

    if out is not None:
        result.save(out)
    if csv is not None:
        export.write_csv(result, csv)
    if parquet is not None:
        export.write_parquet(result, parquet)
    if spec_bench is not None:
        method = headline_method(result) or result.methods[0]
        written = export.write_spec_bench(result, method.id, spec_bench)
        print(f"note: Spec-Bench rows: {', '.join(map(str, written))}", file=sys.stderr)


def _print(result: BenchResult, *, json: bool) -> None:
    from selfspec_tune.report.tables import print_bench

    if json:
        output.print_json(result.to_dict())
    else:
        print_bench(output.result_console(), result)

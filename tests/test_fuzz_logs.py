"""Damaged logs of benches and manifests of exports: read, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.export.folder import others_in
from selfspec_tune.export.runtime_bench import RuntimeLog
from selfspec_tune.measure.run_log import SCHEMA, VERSION, BenchLog, commits_of, runner_of, widened_of
from selfspec_tune.results import MANIFEST, ExportManifest, RuntimeRun
from tests.fuzz_kit import A_FEW, damaged, folder, may_be_refused, write
from tests.results_kit import EXPORT, VERIFIED, skip_config
from tests.runs import paired_run

_MEASURED = {"runner": "native", "prompts": {"seed": 0}, "rounds": 1}
_METHODS = {"self-speculative": {"name": "self-speculative", "draft": {"skip set": "mlp 1"}}}


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_BENCH = _lines(
    {"schema": SCHEMA, "version": VERSION, "measurement": _MEASURED, "numeric_floors": {"": 0.1}},
    {"started_session": 1, "methods": _METHODS, "provenance": skip_config().provenance},
    paired_run("set/1", session=1).to_dict(),
    {"left_out": "early-exit", "reason": "no", "session": 1},
)
_ANSWER = {"prompt_id": "a", "arm": "plain", "num_tokens": 3, "prompt_seconds": 0.1, "decode_seconds": 1.0}
_RUNTIME = _lines(
    {"schema": "selfspec-tune/runtime-bench-log", "version": 1, "measurement": _MEASURED},
    RuntimeRun(**_ANSWER, text_hash="0").to_dict(),
)


@A_FEW
@given(data=st.data())
def test_a_damaged_log_of_a_bench_is_read_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        log = write(Path(place) / "bench.runs.jsonl", data.draw(damaged(_BENCH)))
        for read in (runner_of, widened_of, commits_of, lambda path: BenchLog(path, _MEASURED)):
            may_be_refused(lambda read=read: read(log), "bench.runs.jsonl")  # type: ignore[misc]


@A_FEW
@given(data=st.data())
def test_a_damaged_log_of_a_bench_in_another_runtime_is_read_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        log = write(Path(place) / "runtime.jsonl", data.draw(damaged(_RUNTIME)))
        may_be_refused(lambda: RuntimeLog(log, _MEASURED), "runtime.jsonl")


@A_FEW
@given(data=st.data())
def test_a_damaged_manifest_is_read_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        write(Path(place) / MANIFEST, data.draw(damaged(json.dumps(EXPORT | {"verified": VERIFIED}).encode())))
        may_be_refused(lambda: ExportManifest.load(Path(place) / MANIFEST), MANIFEST)
        may_be_refused(lambda: others_in(Path(place)), MANIFEST)

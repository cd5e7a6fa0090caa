"""Damaged skip.json, bench.json and other projects' files, in every command that reads one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, PolicyKind, Precision
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.results import DraftSettings
from selfspec_tune.search.starts import read_start
from tests import kit
from tests.fuzz_kit import A_FEW, damaged, folder, may_be_refused, may_exit, write
from tests.results_kit import SKIP, bench_result, skip_config, transfer_result

_PRIOR = AcceptancePrior(0.8, (0.5,) * 10)
_DRAFT = Draft(
    SKIP, DraftPolicy(PolicyKind.COST_AWARE, credit=0.5, prior=_PRIOR), vocabulary=64, sources=(NgramLookup(),)
)
_WHOLE = _DRAFT.with_sublayer(0, Precision.INT4).with_sublayer(1, Precision.INT8).with_head(Precision.INT8)
_CONFIG = skip_config(draft=DraftSettings.model_validate(_WHOLE.to_dict()))


def _bytes(value: object) -> bytes:
    return json.dumps(value).encode()


_FILES = {
    "skip.json": _bytes(_CONFIG.to_dict()),
    "bench.json": _bytes(bench_result(runs=bench_result().runs[:2]).to_dict()),
    "transfer.json": _bytes(transfer_result().to_dict()),
    "self-sd.json": _bytes({"llama-2-13b": {"attention": [1], "mlp": [2]}, "b_c": {"layers": [1]}}),
    "economize.json": b"generate(skip_layers=(2, 3), draft=4)\n",
    "layerskip.json": _bytes({"exit_layer": 3}),
    "knapspec.json": _bytes([0, 1] * 4),
}


@cache
def _model() -> tuple[object, str]:
    """A model of four layers for as long as the process lives."""
    kept = folder()
    return kept, str(kit.tiny_llama(Path(kept.name) / "model"))


def check_command(name: str, content: bytes, command: list[str]) -> None:
    with folder() as place:
        file = write(Path(place) / name, content)
        arguments = [str(file) if part == "FILE" else part.replace("OUT", f"{place}/out") for part in command]
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        may_exit(result.exit_code, result.output)


@A_FEW
@given(data=st.data())
def test_a_damaged_file_is_shown_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_FILES)))
    extra = data.draw(st.sampled_from([[], ["--json"]]))
    check_command(name, data.draw(damaged(_FILES[name])), ["show", "FILE", *extra])


@A_FEW
@given(data=st.data())
def test_a_damaged_file_is_exported_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in sorted(_FILES) if "bench" not in name]))
    format_ = data.draw(st.sampled_from(["self-sd", "economize", "layerskip", "knapspec"]))
    model = data.draw(st.sampled_from([[], ["--model", _model()[1]]]))
    check_command(name, data.draw(damaged(_FILES[name])), ["export", "FILE", "--to", format_, *model])


@A_FEW
@given(data=st.data())
def test_a_search_starts_from_a_damaged_file_or_refuses_it(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_FILES)))
    with folder() as place:
        file = write(Path(place) / name, data.draw(damaged(_FILES[name])))
        may_be_refused(lambda: read_start(str(file)), str(file))


@pytest.mark.long
@A_FEW
@given(data=st.data())
def test_a_damaged_file_is_benched_imported_and_written_as_a_draft_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_FILES)))
    model = ["--model", _model()[1]]
    bench = ["bench", "FILE", *model, "--num-prompts", "2", "--max-new-tokens", "4", "--no-references"]
    commands = [bench, ["import", "FILE", *model, "--out", "OUT.json"]]
    commands += [["export", "FILE", "--to", to, *model, "--out", "OUT"] for to in ("nas", "transformers-generate")]
    check_command(name, data.draw(damaged(_FILES[name])), data.draw(st.sampled_from(commands)))

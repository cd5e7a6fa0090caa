"""``studies/copies``: how often drafts of copies of few bits differ from their target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfspec_tune.draft import Precision
from selfspec_tune.engine.kernels.weights import NativeCopy
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings
from selfspec_tune.engine.layers.quantize import Moments
from selfspec_tune.files import read_json
from tests import kit, scripts_kit
from tests.engine_kit import needs_compiler
from tests.results_kit import bench_result
from tests.runs import paired_run

import formats  # isort: skip  # from beside its study, by scripts_kit
import table  # isort: skip

pytestmark = needs_compiler

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(600, 128, generator=GENERATOR) @ torch.randn(128, 128, generator=GENERATOR)
PRODUCTS = (INPUTS.T @ INPUTS / 600)[None]
WEIGHT = torch.randn(70, 128, generator=GENERATOR)


def made(folder: Path, count: int = 16, scale_bits: int = 16, order: str = "given", *, is_plain: bool = False) -> float:
    """What a copy costs: the squared error of outputs."""
    kind = formats.Format(formats.learnt_levels(WEIGHT, count), scale_bits)
    values = formats.values(WEIGHT, kind, PRODUCTS, order, 0.01, folder, is_plain=is_plain)
    return float((INPUTS @ (values - WEIGHT).T).square().mean())


def test_fewer_levels_cost_more_and_making_up_for_errors_less(tmp_path: Path) -> None:
    costs = [made(tmp_path), made(tmp_path, is_plain=True), made(tmp_path, 8), made(tmp_path, 8, is_plain=True)]
    assert costs == sorted(costs)
    assert made(tmp_path, scale_bits=8) == pytest.approx(costs[0], rel=0.1)
    for order in ("groups", "inputs"):
        assert made(tmp_path, order=order) < costs[1]


def test_copies_are_as_good_as_the_program_s_own(tmp_path: Path) -> None:
    copy = NativeCopy(Dense(WEIGHT, None), Precision.INT4, LowBitSettings(symmetric=True), Moments.of(PRODUCTS))
    values = torch.empty_like(WEIGHT)
    copy._dequantise(0, values)
    assert made(tmp_path) == pytest.approx(float((INPUTS @ (values - WEIGHT).T).square().mean()), rel=0.1)


def test_pairs_are_counted_by_position() -> None:
    assert table.discordant([[0, 1], []], [[1, 2], [0]]) == (1, 2)
    share, times, test = table.cells([[0, 1], [3]], [[1], [3]], [10, 20])
    assert share.startswith("10.0%")
    assert times.startswith("1.50")
    assert test == "1 : 0, p 1"


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(kit.tiny_llama(tmp_path, chat=True, context=4096))
    for name, prompts in (("code", ("code-01", "code-02")), ("mixed", ("qa-01",)), ("answers", ("chat-01",))):
        runs = [paired_run(f"builtin/{prompt}") for prompt in prompts]
        runs = [run.model_copy(update={"text": "def f(a, b):\n    return a + b"}) for run in runs]
        bench_result().model_copy(update={"runs": runs}).save(tmp_path / f"{name}.json")
    texts = [f"--{name}={tmp_path / name}.json" for name in ("code", "mixed", "answers")]

    def study(out: str, *more: str) -> int:
        names = ["same", "packed", "plain", "wide, both, inputs", "3.25 bits"]
        given = ["--model", model, "--out", str(tmp_path / out), *texts, "--variants", *names, *more]
        return scripts_kit.run_script(monkeypatch, scripts_kit.COPIES / "errors.py", *given)

    assert study("whole") == 0
    pieces = 1
    while study("pieces", "--seconds", "0"):
        pieces += 1
    assert pieces > 2
    found = read_json(tmp_path / "whole" / "results.json")
    assert found == read_json(tmp_path / "pieces" / "results.json")
    assert [prompt["domain"] for prompt in found["prompts"]] == ["code", "code", "mixed"]
    assert found["variants"]["same"]["wrong"] == {"own head": [""] * 3, "head copied": [""] * 3}
    assert table.lines(found, "packed")[0].startswith("| code: 2 prompts")

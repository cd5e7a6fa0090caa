"""The doctor on tiny models, its sentences, and what it says to bad inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from selfspec_tune.cpu import cpu_quota
from selfspec_tune.doctor import examination, machine
from selfspec_tune.doctor.findings import check_decode, find_out
from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.measure import roofline
from selfspec_tune.results.diagnosis import (
    ContextTiming,
    Diagnosis,
    DraftTiming,
    KernelTiming,
    RoundOverhead,
    StepTiming,
)
from selfspec_tune.results.memory_limit import Spread
from tests import kit


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small buffers, little time, and no watching of others."""
    monkeypatch.setattr(roofline, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "last_level_cache", lambda device: 1 << 18)
    monkeypatch.setattr(examination, "_SECONDS", 0.5)
    monkeypatch.setattr(machine, "_WATCH_SECONDS", 0.01)


def doctor(*arguments: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
    return runner.invoke(app, ["doctor", *map(str, arguments)])


def on(model: Path, *arguments: str | Path) -> Result:
    return doctor("--model", model, "--dtype", "float32", "--device", "cpu", *arguments)


def diagnosed(model: Path, *arguments: str | Path) -> Diagnosis:
    result = on(model, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return Diagnosis.from_dict(json.loads(result.stdout), origin="stdout")


def test_without_a_model_the_machine_is_described() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    for part in (
        "processor",
        "caches",
        "memory",
        "torch",
        "C compiler",
        "cache folder",
        "extra humaneval",
        "Add --model",
    ):
        assert part in result.stdout


def test_the_machine_alone_loads_no_model_library() -> None:
    code = (
        "import sys; from selfspec_tune.doctor import run_doctor; from selfspec_tune.requests import DoctorRequest;"
        "from selfspec_tune.reporting import SilentReporter; run_doctor(DoctorRequest(), SilentReporter());"
        "print(sorted({'transformers', 'optuna', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_json_without_a_model_is_one_object_of_the_schema() -> None:
    result = doctor("--json")
    assert len(result.stdout.splitlines()) == 1
    value = json.loads(result.stdout)
    assert (value["schema"], value["version"]) == ("selfspec-tune/doctor", 1)
    assert value["machine"]["cores"] >= 1
    assert {check["status"] for check in value["checks"]} <= {"ok", "note", "warning"}
    assert value["model"] is None
    assert value["contexts"] == []


def test_a_model_is_timed_at_every_context(tiny_llama_dir: Path) -> None:
    found = diagnosed(tiny_llama_dir, "--contexts", "64,16", "--skip-set", "attn 1-2 · mlp 3")
    assert [context.length for context in found.contexts] == [64, 16]
    assert found.runner in ("native", "fast")
    assert found.left_out == []
    for context in found.contexts:
        own = ["native sum"] if found.runner == "native" else []
        assert [kernel.name for kernel in context.kernels] == ["reduction", "copy", "gemv", *own]
        copies = ["draft at int8", "draft at int4"] if context is found.contexts[0] else []
        verified = [f"verify({k})" for k in (*range(1, 17), 20, 24)]
        assert [step.name for step in context.steps] == ["decode", "draft", *copies, *verified]
        assert all(step.of_limit is not None and step.of_limit > 0 for step in context.steps)
        assert context.rounds >= 2
        decode = context.step("decode")
        assert decode is not None
        assert decode.to_decode == 1.0
    assert found.draft is not None
    assert found.draft.skip_set == "attn 1-2 · mlp 3"
    assert found.overhead is not None
    assert 0 <= found.overhead.share < 1
    assert found.overhead.rounds > 0
    assert found.cost_model is not None
    costs = CostModel.from_dict(found.cost_model)
    assert len(costs.verify) == 25
    assert [entry.length for entry in costs.contexts] == [16, 64]


def test_the_page_says_in_words_what_limits(tiny_llama_dir: Path) -> None:
    result = on(tiny_llama_dir, "--contexts", "16")
    assert result.exit_code == 0, result.output
    for part in ("read kernel", "(the limit)", "verify(16)", "Cost model", "attention", "uniform, as an example"):
        assert part in result.stdout
    for part in ("→ Decode runs at", "→ A draft step takes", "outside forward passes", "the sum of their parts"):
        assert part in result.stdout


def test_default_contexts_stop_at_the_models(tmp_path: Path) -> None:
    short = kit.tiny_llama(tmp_path / "short", context=256, layers=2)
    assert [context.length for context in diagnosed(short).contexts] == [128]
    tiny = kit.tiny_llama(tmp_path / "tiny", context=64, layers=1)
    assert [context.length for context in diagnosed(tiny).contexts] == [64 - 26]


def test_the_reference_runner_says_what_it_cannot_split(tiny_llama_dir: Path) -> None:
    found = diagnosed(tiny_llama_dir, "--runner", "reference", "--contexts", "16")
    assert found.cost_model is None
    assert found.overhead is None
    assert found.contexts[0].step("draft") is None
    assert found.contexts[0].step("verify(16)") is not None
    assert "cannot be split" in found.notes[0]
    page = on(tiny_llama_dir, "--runner", "reference", "--contexts", "16").stdout
    assert "cannot be split" in page
    assert "Cost model" not in page


def test_a_mixture_of_experts_gets_no_share_of_bytes_that_it_may_not_read_and_is_told_so(tmp_path: Path) -> None:
    found = diagnosed(kit.tiny_of_type(tmp_path / "moe", "mixtral"), "--contexts", "8")
    assert any("mixture of experts" in note for note in found.notes)
    shares = {step.name: step.of_limit is not None for step in found.contexts[0].steps}
    assert shares["decode"]
    assert not any(known for name, known in shares.items() if name.startswith("verify"))


def test_a_skip_set_may_be_a_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    file.write_text(json.dumps([0, 1, 1, 0, 0, 0, 0, 1]))
    found = diagnosed(tiny_llama_dir, "--contexts", "8", "--skip-set", file)
    assert found.draft is not None
    assert found.draft.skip_set != "none"
    assert found.draft.source == str(file)


def test_a_draft_by_cost_and_lookup_at_a_low_precision_is_timed_too(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = DraftPolicy(PolicyKind.COST_AWARE, 4)
    draft = Draft(
        SkipSet(4, (1,), ()), policy, DraftPrecision.uniform(4, Precision.INT8), sources=(NgramLookup(2, 1, 3),)
    )
    monkeypatch.setattr(examination, "_draft", lambda request, workload: (draft, "as given"))
    found = diagnosed(tiny_llama_dir, "--contexts", "16")
    assert found.draft is not None
    assert found.draft.policy["policy"] == "cost-aware"
    assert found.draft.predicted_step is not None
    assert found.overhead is not None
    assert found.overhead.over_steps > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contexts", "16,2048"), "--contexts 2048: the model's context has 1024 positions"),
        (("--contexts", "many"), "--contexts 'many': expected numbers of tokens"),
        (("--contexts", "0"), "--contexts 0: expected lengths of at least 1"),
        (("--skip-set", "attn 9"), "attention layer 9 is out of range"),
        (("--skip-set", "layers 2"), "Cannot read the skip set"),
        (("--device", "abacus"), "Unknown device 'abacus'"),
    ],
)
def test_a_bad_input_is_refused_with_what_was_expected(
    tiny_llama_dir: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = on(tiny_llama_dir, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_an_unknown_model_is_answered_with_the_names_that_are_close() -> None:
    result = doctor("--model", "lama-2-13b")
    assert result.exit_code == 2
    assert "Did you mean llama-2-13b" in result.stderr


@pytest.mark.parametrize("options", [("--contexts", "128"), ("--skip-set", "none"), ("--dtype", "float32")])
def test_options_about_a_model_need_one(options: tuple[str, ...]) -> None:
    result = doctor(*options)
    assert result.exit_code == 2
    assert "--model" in result.stderr


# The sentences


def step(name: str, to_decode: float, num_bytes: float = 1e9, of_limit: float = 0.71) -> StepTiming:
    seconds = 0.1 * to_decode
    spread = Spread(median=seconds, low=seconds, high=seconds)
    return StepTiming(name=name, seconds=spread, bytes=num_bytes, of_limit=of_limit, to_decode=to_decode)


def rows(*steps: StepTiming) -> ContextTiming:
    kernel = KernelTiming(name="gemv", bytes=1408450704, seconds=Spread(median=0.1, low=0.1, high=0.1))
    return ContextTiming(length=128, rounds=5, limit="gemv", kernels=[kernel], steps=list(steps))


def told(*steps: StepTiming, overhead: RoundOverhead | None = None, draft: DraftTiming | None = None) -> str:
    return "\n".join(find_out(rows(*steps), draft, overhead, 0.012))


@pytest.mark.parametrize(
    ("share", "meaning"),
    [
        (0.93, "only reading fewer bytes"),
        (0.71, "limits most of it"),
        (0.2, "does not limit it"),
        (1.4, "in the cache"),
    ],
)
def test_how_near_decoding_comes_to_the_limit_is_put_in_words(share: float, meaning: str) -> None:
    page = told(step("decode", 1.0, of_limit=share))
    assert f"Decode runs at {share:.0%} of what this machine can read ({14.0845 * share:.1f} of 14.1 GB/s" in page
    assert meaning in page


def test_a_draft_step_is_held_against_its_share_of_bytes() -> None:
    fair = told(step("decode", 1.0), step("draft", 0.62, 0.6e9), step("verify(4)", 1.2))
    assert "takes 62% of a decode step's time and reads 60% of its bytes." in fair
    assert "costs 3.7 decode steps: it pays where more than 2.7 of them are accepted" in fair
    dear = told(step("decode", 1.0), step("draft", 0.9, 0.6e9), step("verify(4)", 1.8))
    assert "50% more than its share" in dear
    assert "cannot pay" in dear


@pytest.mark.parametrize("runner", ["native", "fast"])
def test_decoding_far_from_the_limit_is_warned_about(runner: str) -> None:
    (check,) = check_decode(rows(step("decode", 1.0, of_limit=0.41)), runner)
    assert check.status == "warning"
    assert check.detail.startswith("Decode reaches 41% of what this machine can read: ")
    assert ("what compiled them" in check.detail) == (runner == "native")
    (check,) = check_decode(rows(step("decode", 1.0, of_limit=0.6)), runner)
    assert (check.status, check.detail) == ("ok", "Decode reaches 60% of what this machine can read")
    assert check_decode(rows(), runner) == []


def test_copies_are_held_against_a_decode_step() -> None:
    page = told(step("decode", 1.0), step("draft at int8", 0.62), step("draft at int4", 0.42))
    assert "A draft step that skips nothing takes 0.62× at int8 and 0.42× at int4 of a decode step." in page
    assert "skips nothing" not in told(step("decode", 1.0))


def test_verification_of_few_tokens_is_told_beside_that_of_many() -> None:
    page = told(step("decode", 1.0), step("verify(4)", 1.25), step("verify(8)", 1.9))
    assert "Verifying 8 drafted tokens costs 1.90× a decode step, verifying 4 of them 1.25×" in page


def test_verification_is_nearly_free_or_dear() -> None:
    assert "1.20× a decode step: nearly free" in told(step("decode", 1.0), step("verify(8)", 1.2))
    assert "computing limits it, so short drafts pay best" in told(step("decode", 1.0), step("verify(8)", 4.0))


def test_verification_that_reads_more_is_not_put_down_to_computing() -> None:
    page = told(step("decode", 1.0), step("verify(8)", 3.2, 3e9))
    assert "reads up to 3.0× its bytes, as tokens go to other experts: short drafts pay best" in page
    assert "computing limits it" not in page


def test_overhead_and_fit_are_told() -> None:
    overhead = RoundOverhead(generations=3, rounds=40, share=0.035, over_steps=1.02)
    draft = DraftTiming(skip_set="none", policy={}, source="text", predicted_step=0.05, measured_step=0.051)
    page = told(step("decode", 1.0), overhead=overhead, draft=draft)
    assert "3.5% of a real generation passes outside forward passes, more than the 2 %" in page
    assert "1.02× what its steps take alone" in page
    assert "within 1.2%; this draft was predicted at 50.00 ms and took +2.0%." in page
    far = draft.model_copy(update={"measured_step": 0.06})
    assert "too far off to plan with" in told(step("decode", 1.0), draft=far)


# The checks


def checks() -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.detail) for check in machine.check_machine()}


def test_a_busy_machine_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda interval: 80.0)
    assert checks()["load"][0] == "warning"
    assert "80% of the machine" in checks()["load"][1]
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda interval: 3.0)
    assert checks()["load"][0] == "ok"


def test_missing_things_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    monkeypatch.setenv("SELFSPEC_TUNE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("in the way")
    found = checks()
    assert "Install one" in found["C compiler"][1]
    assert "pip install 'selfspec-tune[humaneval]'" in found["extra humaneval"][1]
    assert found["cache folder"][0] == "warning"
    assert "SELFSPEC_TUNE_CACHE" in found["cache folder"][1]
    assert "not fetched yet" in found["default model"][1]


def test_fewer_threads_than_cores_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.provenance, "num_cores", lambda: 64)
    assert checks()["threads"][0] == "warning"
    assert "of 64 cores" in checks()["threads"][1]


def test_a_container_s_quota_below_the_threads_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(machine.provenance, "num_cores", lambda: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.5)
    status, detail = checks()["threads"]
    assert status == "warning"
    assert "torch uses 8 threads, and this container is given the time of 2.5 cores" in detail
    assert "OMP_NUM_THREADS=2" in detail


def test_more_threads_than_cores_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(machine.provenance, "num_cores", lambda: 2)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    status, detail = checks()["threads"]
    assert status == "warning"
    assert "torch uses 16 threads, and there are 2 cores" in detail
    assert "Set OMP_NUM_THREADS=2" in detail
    assert "container" not in detail


def test_a_variable_that_asks_for_more_than_there_is_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(machine.provenance, "num_cores", lambda: 2)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    status, detail = checks()["threads"]
    assert status == "warning"
    assert "OMP_NUM_THREADS is 16, and there are 2 cores" in detail


def test_a_container_s_quota_is_no_fewer_threads_than_it_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(machine.provenance, "num_cores", lambda: 64)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.5)
    assert checks()["threads"] == ("ok", "torch uses 2 threads on 2 cores")
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 1)
    assert "of 2 cores" in checks()["threads"][1]


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "200000 100000"}, "0::/", 2.0),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/docker/x\n0::/", 1.5),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", 0.5),
        ({"cpu.max": "200000 100000"}, "garbage\n0::/", 2.0),
        ({"cpu.max": "200000 100000"}, "0::/../../elsewhere", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", None),
        ({"cpu/cpu.cfs_quota_us": "150000"}, "3:cpuset:/", None),
        ({}, "0::/", None),
        ({"cpu.max": "200000"}, "", None),
    ],
)
def test_a_quota_is_read_from_the_control_groups(
    tmp_path: Path, files: dict[str, str], own: str, quota: float | None
) -> None:
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") is None


def test_one_round_has_no_spread() -> None:
    assert Spread.of([2.0]) == Spread(median=2.0, low=2.0, high=2.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0)

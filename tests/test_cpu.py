"""Levels: which one a processor gets, and what may be asked for instead."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfspec_tune import cpu as levels
from selfspec_tune.cli.app import app
from selfspec_tune.cpu import LEVEL_VARIABLE, LEVELS, available_levels, chosen_level
from selfspec_tune.errors import NativeUnavailableError, UsageError
from tests import kit

Processor = Callable[[str, str], None]

SSE = "flags\t\t: fpu vme sse sse2 sse4_2"
AVX2 = f"{SSE} avx avx2 fma f16c bmi1 bmi2 abm movbe"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
AVX512_BF16 = f"{AVX512} avx512_vnni avx512_bf16"
NEON = "Features\t: fp asimd evtstrm aes"
NEON_BF16 = f"{NEON} asimddp i8mm bf16"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    chosen_level.cache_clear()
    yield
    chosen_level.cache_clear()


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Makes this machine one of a kind, with the given line in /proc/cpuinfo."""

    def make(machine: str, line: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
        monkeypatch.setattr(levels, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(platform, "system", lambda: "Linux")

    return make


@pytest.mark.parametrize(
    ("machine", "line", "level"),
    [
        ("x86_64", SSE, "x86-64"),
        ("x86_64", AVX2, "x86-64-v3"),
        ("AMD64", AVX2.replace(" f16c", ""), "x86-64"),
        ("x86_64", AVX512, "x86-64-v4"),
        ("x86_64", AVX512.replace(" avx512vl", ""), "x86-64-v3"),
        ("x86_64", AVX512_BF16, "x86-64-v4-bf16"),
        ("aarch64", NEON, "aarch64"),
        ("arm64", NEON_BF16, "aarch64-bf16"),
        ("aarch64", NEON_BF16.replace(" i8mm", ""), "aarch64"),
        ("x86_64", "no flags here", "x86-64"),
    ],
)
def test_a_processor_gets_the_highest_level_that_it_has(
    processor: Processor, machine: str, line: str, level: str
) -> None:
    processor(machine, line)
    assert chosen_level().name == level
    assert chosen_level().has_bf16_dot == level.endswith("bf16")


def test_what_only_some_cores_can_do_does_not_count(processor: Processor) -> None:
    processor("aarch64", NEON_BF16)
    with levels.CPU_INFO.open("a") as file:
        file.write(f"{NEON}\n")
    assert chosen_level().name == "aarch64"


def test_without_a_list_of_flags_the_lowest_level_serves(processor: Processor) -> None:
    processor("x86_64", AVX2)
    levels.CPU_INFO.unlink()
    assert chosen_level().name == "x86-64"


@pytest.mark.parametrize(("answer", "level"), [("1", "aarch64-bf16"), ("0", "aarch64"), ("", "aarch64")])
def test_macos_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch, answer: str, level: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(levels, "_sysctl", lambda name: answer)
    assert chosen_level().name == level


def test_a_lower_level_can_be_asked_for(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor("x86_64", AVX512_BF16)
    for level in ("x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"):
        monkeypatch.setenv(LEVEL_VARIABLE, f" {level} ")
        chosen_level.cache_clear()
        assert chosen_level().name == level


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("x86-64-v4", "a level that this processor lacks"),
        ("aarch64", "a level that this processor lacks"),
        ("v3", "no level"),
        ("X86-64", "no level"),
    ],
)
def test_another_level_is_refused(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, stated: str, problem: str
) -> None:
    processor("x86_64", AVX2)
    monkeypatch.setenv(LEVEL_VARIABLE, stated)
    message = f"{LEVEL_VARIABLE} is '{stated}', which is {problem}. This processor has: x86-64, x86-64-v3. Set it to"
    with pytest.raises(UsageError, match=re.escape(message)):
        chosen_level()


def test_a_level_that_is_none_ends_a_command_with_usage(tmp_path: Path) -> None:
    model = str(kit.tiny_llama(tmp_path / "model", layers=1))
    result = CliRunner(env={LEVEL_VARIABLE: "x86-64-v99"}).invoke(app, ["doctor", "--model", model, "--device", "cpu"])
    assert result.exit_code == 2
    assert f"error: {LEVEL_VARIABLE} is 'x86-64-v99', which is no level." in result.output


def test_other_processors_have_no_kernels(processor: Processor) -> None:
    processor("riscv64", "isa\t: rv64imafdc")
    assert available_levels() == []
    with pytest.raises(NativeUnavailableError, match="kernels for x86-64 and aarch64, and this is riscv64"):
        chosen_level()


def test_levels_of_a_kind_of_processor_go_up() -> None:
    for machine in ("x86_64", "aarch64"):
        needs = [level.needs for level in LEVELS if level.machine == machine]
        assert all(lower < higher for lower, higher in pairwise(needs))


def test_choosing_a_level_needs_no_torch() -> None:
    code = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("levels", {str(levels.__file__)!r})
sys.modules["levels"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
print(module.available_levels() == [] or module.chosen_level().name)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

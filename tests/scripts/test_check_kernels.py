"""scripts/check_kernels on a program of a few lines: what it runs, what it skips, and what it says."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from selfspec_tune.cpu import LEVELS, available_levels, machine
from selfspec_tune.engine.kernels import compilers
from tests.engine_kit import needs_compiler
from tests.scripts_kit import load_script, run_script

LOWEST = available_levels()[0].name
FOREIGN = next(level for level in LEVELS if level.machine != machine())


@pytest.fixture(autouse=True)
def few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source that is compiled: a program that exits with 0."""
    source = tmp_path / "kernels.c"
    source.write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(compilers, "SOURCE", source)
    return source


@needs_compiler
def test_each_compiler_is_tried_at_each_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [compiler.name for compiler in compilers.candidates()]
    assert run_script(monkeypatch, "check_kernels", "--levels", LOWEST) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert lines == [f"all right {LOWEST}, {name}" for name in names]
    assert total == f"{len(names)} of {len(names)} right, 0 skipped"


@needs_compiler
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('#include <stdio.h>\nint main(void) { puts("check 7: wrong"); return 1; }', "exit code 1\ncheck 7: wrong"),
        ("#include <signal.h>\nint main(void) { return raise(SIGILL); }", "exit code -4"),
        ("int main(void) { nonsense", "could not compile them"),
    ],
)
def test_a_program_that_fails_is_shown(
    few_lines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    few_lines.write_text(f"{code}\n")
    monkeypatch.setenv("CC", shlex.join(compilers.found()[0]))
    assert run_script(monkeypatch, "check_kernels", "--levels", LOWEST) == 1
    printed = capsys.readouterr().out
    assert f"WRONG     {LOWEST}, " in printed
    assert said in printed


def test_what_cannot_be_run_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("check_kernels")
    clang = compilers.Compiler(("clang",), "clang 17", True)
    zig = compilers.Compiler(("zig", "cc"), "zig", True)
    monkeypatch.setattr(script, "available_levels", lambda: [])
    own = next(level for level in LEVELS if level.machine == machine())
    assert list(script.cases([own], [clang], None)) == [f"{own.name}: this processor lacks it"]
    assert list(script.cases([FOREIGN], [clang], None)) == [
        f"{FOREIGN.name}: the Python package ziglang is not installed"
    ]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (reason,) = script.cases([FOREIGN], [clang], zig)
    assert reason.endswith("(QEMU's user mode) is not installed")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    (case,) = script.cases([FOREIGN], [clang], zig)
    assert case.name == f"{FOREIGN.name}, zig under qemu-{FOREIGN.machine}"


@pytest.mark.parametrize(("cc", "levels"), [("/nonexistent", LOWEST), ("", "x86-64-v99")])
def test_bad_requests_are_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cc: str, levels: str
) -> None:
    monkeypatch.setenv("CC", cc)
    assert run_script(monkeypatch, "check_kernels", "--levels", levels) == 2
    assert "error: " in capsys.readouterr().err

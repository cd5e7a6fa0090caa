"""Building the kernels: whatever the compiler and the cache do, the program runs on and says why it is slower."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfspec_tune.engine.native import build, library
from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.models.default_model import CACHE_VARIABLE
from tests import kit
from tests.engine_kit import needs_compiler

Script = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing remembered of other builds."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build._outcome.cache_clear()
    yield tmp_path / "cache"
    build._outcome.cache_clear()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes $CC a shell script; ``$out`` is what it is to write, ``$log`` a file of its calls."""

    def make(body: str) -> Path:
        path = tmp_path / "compiler"
        find_output = 'for a; do [ "$before" = -o ] && out=$a; before=$a; done\n'
        path.write_text(f'#!/bin/sh\nlog={tmp_path}/log\necho "$@" >> $log\n{find_output}{body}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return tmp_path / "log"

    return make


def _builds(log: Path) -> int:
    return sum("-shared" in line for line in log.read_text().splitlines())


def _left(cache_folder: Path) -> list[str]:
    return sorted(path.name for path in (cache_folder / "native").iterdir())


# -- the compiler ------------------------------------------------------------------------------------------------


def test_the_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -m 'a b'")
    assert build.compiler() == [sys.executable, "-m", "a b"]
    monkeypatch.setenv("CC", "  ")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "gcc" else None)
    assert build.compiler() == ["gcc"]


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("/nonexistent -m64", r"\$CC names '/nonexistent', and there is no such program; correct or unset it"),
        ("gcc 'x", r"\$CC is \"gcc 'x\", which is no command"),
        (None, r"there is no C compiler \(cc, gcc or clang\); install one, or name it in \$CC"),
    ],
)
def test_a_compiler_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, problem: str
) -> None:
    if stated is None:
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("CC", stated)
    with pytest.raises(NativeUnavailableError, match=problem):
        build.library_path()
    assert build.status().startswith("no native kernels: ")


def test_a_compiler_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NativeUnavailableError, match="broken did not run"):
        build.library_path()


def test_a_compiler_that_fails_half_way_leaves_nothing_and_is_asked_once(script: Script, cache_folder: Path) -> None:
    log = script('[ -z "$out" ] || { echo half > "$out"; echo "x.c:1: error: bad luck" >&2; exit 1; }')
    for _ in range(3):
        with pytest.raises(
            NativeUnavailableError, match=r"compiler could not compile them \(x\.c:1: error: bad luck\)"
        ):
            build.library_path()
    assert (_builds(log), _left(cache_folder)) == (1, [])


def test_a_compiler_that_writes_nothing_has_failed(script: Script) -> None:
    script("true")
    with pytest.raises(NativeUnavailableError, match="could not compile them"):
        build.library_path()


def test_a_compiler_that_hangs_is_given_up(script: Script, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setattr(build, "_COMPILE_SECONDS", 0.3)
    script('[ -z "$out" ] || exec sleep 20')
    with pytest.raises(NativeUnavailableError, match=r"did not run \(.*timed out"):
        build.library_path()
    assert _left(cache_folder) == []


# -- the cache ---------------------------------------------------------------------------------------------------


def test_the_kernels_are_built_once_and_anew_for_another_compiler(script: Script, cache_folder: Path) -> None:
    log = script('[ -z "$out" ] || echo made > "$out"')
    first = build.library_path()
    build._outcome.cache_clear()
    assert build.library_path() == first
    assert _builds(log) == 1
    assert build.status() == f"native kernels built ({first.name})"
    script('[ "$1" = --version ] && echo 2.0; [ -z "$out" ] || echo made > "$out"')
    build._outcome.cache_clear()
    assert build.library_path() != first
    assert (_builds(log), len(_left(cache_folder))) == (2, 2)


def test_two_builds_at_once_do_no_harm(script: Script, cache_folder: Path) -> None:
    script('[ -z "$out" ] || { echo ha > "$out"; sleep 0.2; echo lf >> "$out"; }')
    target = cache_folder / "native" / "kernels.so"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: build._build(build.compiler(), target), range(4)))
    assert target.read_text() == "ha\nlf\n"
    assert _left(cache_folder) == ["kernels.so"]


def test_an_interrupted_build_leaves_nothing(
    script: Script, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    script("true")

    def interrupted(command: list[str]) -> subprocess.CompletedProcess[str]:
        if "-o" not in command:
            return subprocess.CompletedProcess(command, 0, "", "")
        Path(command[command.index("-o") + 1]).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.library_path()
    assert _left(cache_folder) == []


def test_a_cache_that_cannot_be_written_is_named(script: Script, cache_folder: Path) -> None:
    script('[ -z "$out" ] || echo made > "$out"')
    cache_folder.write_text("a file where a folder should be")
    with pytest.raises(
        NativeUnavailableError, match=rf"cache/native does not take them \(.*\); set {CACHE_VARIABLE} to"
    ):
        build.library_path()


@needs_compiler
def test_a_damaged_file_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", ("-O0", *build._FLAGS[2:]))  # quicker
    path = build.library_path()
    path.write_bytes(b"no library")
    assert library._opened().read_all
    assert path.stat().st_size > 1000


def test_a_file_that_does_not_load_even_then_is_no_library(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script('[ -z "$out" ] || echo nonsense > "$out"')
    library.load_library.cache_clear()
    try:
        with pytest.raises(NativeUnavailableError, match="the built kernels could not be loaded"):
            library.load_library()
    finally:
        library.load_library.cache_clear()


# -- without a compiler ------------------------------------------------------------------------------------------


_CHOOSE = """
import sys
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.native import status
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import load_model
loaded = load_model(sys.argv[1], dtype="bfloat16", device="cpu")
print(choose_runner(loaded).name)
print(status())
try:
    choose_runner(loaded, "native")
except UnsupportedModelError as error:
    print(error)
"""


def test_without_a_compiler_the_fast_runner_serves_and_says_why(tmp_path: Path) -> None:
    checkpoint = kit.tiny_llama(tmp_path / "model", layers=1)
    environment = {**os.environ, "PATH": "", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", _CHOOSE, str(checkpoint)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    reason = "there is no C compiler (cc, gcc or clang); install one, or name it in $CC"
    notice, name, status, refusal = run.stdout.splitlines()
    assert name == "fast"
    assert notice == f"{checkpoint} runs without our native kernels, so decoding is slower: {reason}."
    assert status == f"no native kernels: {reason}"
    assert refusal == (f"--runner native cannot serve {checkpoint}: {reason}. Use --runner auto or reference.")

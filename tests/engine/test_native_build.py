"""Building the kernels: whatever compilers and the cache do, right code runs, or the program says why it is slower."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from selfspec_tune.cpu import LEVELS, chosen_level
from selfspec_tune.engine.kernels import binding, build, compilers, store
from selfspec_tune.engine.kernels.compilers import Compiler
from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.models.default_model import CACHE_VARIABLE
from tests import kit
from tests.engine_kit import HAS_COMPILER, needs_compiler

ABI = (1, 2, 3, 4, 5, 6, 7)
# A library that has just what the check asks for, and whose faults are macros.
STUB = """
#include <signal.h>
#include <stdint.h>
#include <unistd.h>
#ifndef LEVEL
#define LEVEL KERNELS_LEVEL
#endif
#ifndef VERSION
#define VERSION 1
#endif
#ifndef SPEED
#define SPEED 90
#endif
#ifndef BEFORE
#define BEFORE
#endif
#ifndef WRONG
#define WRONG 0
#endif
const char *kernels_level(void) { return LEVEL; }
int64_t kernels_abi(int32_t which) { return which ? which + 1 : VERSION; }
int32_t self_test(int32_t threads) { BEFORE; return threads < 2 ? 0 : WRONG; }
double self_test_speed(int32_t format, int32_t tokens, int32_t threads) { return format < 0 ? 100 : SPEED; }
"""
REAL_PATH = os.environ["PATH"]
REAL_COMPILER = compilers.found()[0] if HAS_COMPILER else ()

Script = Callable[[str], Path]
Fake = Callable[..., Path]


def forget() -> None:
    """As if the process had just begun."""
    for remembered in (build._outcome, store._private, binding._loaded, chosen_level):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, no compilers, the stub for sources, and nothing remembered of other builds."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernels.c").write_text(STUB)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(compilers, "KERNELS", sources)
    monkeypatch.setattr(compilers, "SOURCE", sources / "kernels.c")
    monkeypatch.setattr(compilers, "find_spec", lambda name: None)
    monkeypatch.setattr(build, "FOLDER", tmp_path / "prebuilt")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield tmp_path / "cache"
    forget()


@pytest.fixture
def fake(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Fake:
    """Makes a compiler of a name and version that compiles with macros of its own; returns the log of its calls."""

    zig_cache = tmp_path_factory.getbasetemp() / "zig"  # one for all tests, where zig is the real compiler
    variables = f"PATH={REAL_PATH} ZIG_GLOBAL_CACHE_DIR={zig_cache} ZIG_LOCAL_CACHE_DIR={zig_cache}"

    def make(name: str, version: str, *macros: str) -> Path:
        log = tmp_path / f"{name}.log"
        drop = 'for a; do shift; case "$a" in -m*) ;; *) set -- "$@" "$a";; esac; done'
        gcc = f"{name} (Debian) {version}\\nFree Software Foundation"
        said = f"clang version {version}" if name.startswith("clang") else gcc
        real = " ".join((*REAL_COMPILER, *(f"'-D{macro}'" for macro in macros)))
        lines = (
            "#!/bin/sh",
            f'[ "$1" = --version ] && {{ printf "{said}\\n"; exit; }}',
            f'echo "$@" >> {log}',
            drop,
            f'{variables} exec {real} "$@"',
        )
        path = tmp_path / "bin" / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)
        return log

    return make


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes $CC a shell script; ``$out`` is what it is to write, ``$log`` a file of its calls."""

    def make(body: str) -> Path:
        path = tmp_path / "compiler"
        find_output = 'for a; do [ "$before" = -o ] && out=$a; before=$a; done\n'
        path.write_text(f'#!/bin/sh\nPATH={REAL_PATH}\nlog={tmp_path}/log\necho "$@" >> $log\n{find_output}{body}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return tmp_path / "log"

    return make


def _builds(log: Path) -> int:
    return sum("-shared" in line for line in log.read_text().splitlines()) if log.exists() else 0


def _left(cache_folder: Path) -> list[str]:
    return sorted(path.name for path in (cache_folder / "native").iterdir() if path.name != ".lock")


# -- the compilers -----------------------------------------------------------------------------------------------


def test_the_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -m 'a b'")
    assert compilers.found() == [(sys.executable, "-m", "a b")]
    monkeypatch.setenv("CC", "  ")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "gcc" else None)
    assert compilers.found() == [("/bin/gcc",)]


def test_known_good_compilers_come_first_and_each_once(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("clang", "13.0.1")
    fake("clang-17", "17.0.6")
    fake("gcc", "12.2.0")
    fake("gcc-12", "12.2.0")
    fake("cc", "odd")
    monkeypatch.setattr(compilers, "find_spec", lambda name: SimpleNamespace() if name == "ziglang" else None)
    monkeypatch.setattr(compilers, "version", lambda name: "0.15.1")
    names = [(compiler.name, compiler.is_known_good) for compiler in compilers.candidates()]
    assert names == [
        ("clang 17.0.6", True),
        ("gcc 12.2.0", True),
        ("zig 0.15.1", True),
        ("clang 13.0.1", False),
        (str(shutil.which("cc")), False),
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Debian clang version 14.0.6\nTarget: x", "clang 14.0.6"),
        ("Apple clang version 15.0.0 (clang-1500.3.9.4)\nTarget: x", "clang 15.0.0"),
        ("gcc (GCC) 13.3.1 20240522 (Red Hat 13.3.1-1)\nCopyright Free Software Foundation", "gcc 13.3.1"),
        ("x-gcc (conda-forge gcc 12.3.0-3) 12.3.0\nCopyright Free Software Foundation", "gcc 12.3.0"),
        ("tcc version 0.9.27 (x86_64 Linux)", "cc"),
        ("", "cc"),
    ],
)
def test_versions_are_read_as_each_compiler_says_them(monkeypatch: pytest.MonkeyPatch, text: str, name: str) -> None:
    monkeypatch.setattr(compilers, "_version_text", lambda command: text)
    assert compilers._examined(("cc",)).name == name


def test_each_compiler_is_told_the_level_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[list[str]] = []

    def run(command: list[str], *_: object) -> subprocess.CompletedProcess[str]:
        told.append(command)
        (tmp_path / "made.so").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(compilers, "_run", run)
    monkeypatch.setattr(compilers.platform, "system", lambda: "Linux")
    level = next(level for level in LEVELS if level.name == "x86-64-v4-bf16")
    Compiler(("clang",), "clang 14", True).compile(level, tmp_path / "made.so")
    Compiler(("zig", "cc"), "zig", True).compile(level, tmp_path / "made.so")
    by_clang, by_zig = told
    assert {"-march=x86-64-v4", "-mavx512bf16", '-DKERNELS_LEVEL="x86-64-v4-bf16"', "-shared"} <= set(by_clang)
    assert by_zig[2:5] == ["-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64_v4+avx512bf16+avx512vnni"]
    assert not any(word.startswith("-march") for word in by_zig)
    assert "-mprefer-vector-width=512" in by_zig


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("/nonexistent -m64", r"\$CC names '/nonexistent', and there is no such program; correct or unset it"),
        ("gcc 'x", r"\$CC is \"gcc 'x\", which is no command"),
        (None, r"there is no C compiler \(clang, gcc or cc, or the Python package ziglang\); install one, or name it"),
    ],
)
def test_a_compiler_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, problem: str
) -> None:
    if stated is not None:
        monkeypatch.setenv("CC", stated)
    with pytest.raises(NativeUnavailableError, match=problem):
        build.built(ABI)
    assert binding.status().startswith("no native kernels: ")


def test_a_compiler_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NativeUnavailableError, match="broken did not run"):
        build.built(ABI)


def test_a_compiler_that_fails_half_way_leaves_nothing_and_is_asked_once(script: Script, cache_folder: Path) -> None:
    log = script('[ -z "$out" ] || { echo half > "$out"; echo "x.c:1: error: bad luck" >&2; exit 1; }')
    for _ in range(3):
        with pytest.raises(
            NativeUnavailableError, match=r"compiler could not compile them \(x\.c:1: error: bad luck\)"
        ):
            build.built(ABI)
    assert (_builds(log), _left(cache_folder)) == (1, [])


def test_a_compiler_that_writes_nothing_has_failed(script: Script) -> None:
    script("true")
    with pytest.raises(NativeUnavailableError, match="could not compile them"):
        build.built(ABI)


def test_a_compiler_that_hangs_is_given_up(script: Script, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setattr(compilers, "_COMPILE_SECONDS", 0.3)
    script('[ -z "$out" ] || exec sleep 20')
    with pytest.raises(NativeUnavailableError, match=r"did not run \(.*timed out"):
        build.built(ABI)
    assert _left(cache_folder) == []


_COMPILE = """
import sys
from selfspec_tune.cli import exits
from selfspec_tune.engine.kernels import compilers
exits.heed()
compilers._run(["sh", "-c", "sleep 300 & echo $! > $1; wait", "sh", sys.argv[1]], 300)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_takes_its_compiler_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("PATH", REAL_PATH)
    file = tmp_path / "pid"
    command = [sys.executable, "-c", _COMPILE, str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert _comes_true(lambda: file.exists() and file.read_text().endswith("\n"))
    process.send_signal(how)
    process.wait(timeout=60)
    started = psutil.Process(int(file.read_text())) if psutil.pid_exists(int(file.read_text())) else None
    assert _comes_true(lambda: started is None or not started.is_running() or started.status() == "zombie")


def _comes_true(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60  # a guard against hanging
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


# -- the verdict -------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("WRONG=3", "clang 17.0.6 made wrong code (check 3 failed with 2 threads)"),
        ("BEFORE=raise(SIGSEGV)", "clang 17.0.6 made code that crashes (SIGSEGV)"),
        ("BEFORE=raise(SIGILL)", "clang 17.0.6 made code that crashes (SIGILL)"),
        ('LEVEL="quantum"', f"clang 17.0.6 made kernels for quantum, not {chosen_level().name}"),
        ("VERSION=9", f"clang 17.0.6 made kernels of another interface ({[9, *ABI[1:]]}, not {[*ABI]})"),
        ("self_test=another_name", "clang 17.0.6 made code that cannot be loaded (AttributeError: "),
        ("SPEED=30", "clang 17.0.6 made slow code (30 % of a plain read)"),
    ],
)
def test_wrong_or_slow_code_is_thrown_away_for_the_next_compiler(fake: Fake, fault: str, problem: str) -> None:
    fake("clang", "17.0.6", fault)
    fake("gcc", "12.2.0")
    found = build.built(ABI)
    assert found.maker == "gcc 12.2.0"
    assert found.verdict is not None
    assert [said[: len(problem)] for said in found.verdict.passed_over] == [problem]
    assert found.describe() == f"native kernels {chosen_level().name}, gcc 12.2.0: 90 % of a plain read"


@needs_compiler
def test_a_check_without_an_end_is_ended(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CHECK_SECONDS", 1)
    fake("clang", "17.0.6", "BEFORE=sleep(60)")
    with pytest.raises(NativeUnavailableError, match=r"clang 17\.0\.6 made code whose check does not end within 1 s"):
        build.built(ABI)


@needs_compiler
def test_where_none_is_right_each_is_named(fake: Fake) -> None:
    fake("clang", "17.0.6", "WRONG=1")
    fake("gcc", "12.2.0", "WRONG=2")
    with pytest.raises(NativeUnavailableError, match=r"clang 17.0.6 made wrong code .*; gcc 12.2.0 made wrong code"):
        build.built(ABI)


@needs_compiler
def test_of_slow_libraries_the_fastest_is_kept_until_there_is_another_compiler(fake: Fake) -> None:
    logs = [
        fake("clang", "17.0.6", "SPEED=20"),
        fake("gcc", "12.2.0", "SPEED=30"),
        fake("cc", "odd", "SPEED=10"),
    ]
    for _ in range(2):
        found = build.built(ABI)
        assert found.describe().startswith(
            f"native kernels {chosen_level().name}, gcc 12.2.0: 30 % of a plain read, which is slow"
        )
        assert [_builds(log) for log in logs] == [1, 1, 1]
        forget()
    fake("clang-18", "18.1.0")
    assert build.built(ABI).maker == "clang 18.1.0"


@needs_compiler
def test_a_busy_moment_condemns_no_compiler(fake: Fake) -> None:
    fake("clang", "17.0.6", "SPEED=({ static int asked; asked++ ? 80 : 5; })")
    fake("gcc", "12.2.0")
    assert build.built(ABI).describe().endswith("clang 17.0.6: 80 % of a plain read")


# -- the cache ---------------------------------------------------------------------------------------------------


@needs_compiler
def test_the_kernels_are_built_once_and_anew_for_another_compiler_in_cc(
    fake: Fake, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake("gcc", "12.2.0")
    first = build.built(ABI)
    forget()
    assert build.built(ABI) == first
    assert _builds(log) == 1
    for version in ("1.0", "2.0"):
        log = fake("mine", version)
        monkeypatch.setenv("CC", "mine")
        forget()
        assert build.built(ABI).path != first.path
        forget()
        build.built(ABI)
    assert (_builds(log), len(_left(cache_folder))) == (2, 6)


@needs_compiler
def test_changed_sources_and_levels_are_built_anew(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("gcc", "12.2.0")
    paths = {build.built(ABI).path}
    (compilers.KERNELS / "more.h").write_text("/* beside it */\n")
    forget()
    paths.add(build.built(ABI).path)
    lowest = next(level for level in LEVELS if level.machine == chosen_level().machine)
    monkeypatch.setattr(build, "chosen_level", lambda: lowest)
    forget()
    paths.add(build.built(ABI).path)
    assert len(paths) == 3


@needs_compiler
def test_only_this_user_can_read_or_write_what_is_kept(fake: Fake, cache_folder: Path) -> None:
    log = fake("gcc", "12.2.0")
    before = os.umask(0)
    try:
        path = build.built(ABI).path
    finally:
        os.umask(before)
    assert (cache_folder / "native").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (path, path.with_suffix(".json"))} == {0o600}
    forget()
    build.built(ABI)
    assert _builds(log) == 1


@needs_compiler
def test_two_builds_at_once_do_no_harm(fake: Fake, cache_folder: Path) -> None:
    log = fake("gcc", "12.2.0")
    folder = store.shared_folder()
    level = chosen_level()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build._had(folder / "kernels.so", level, ABI, frozenset()), range(4)))
    assert _builds(log) == 1
    assert len({one.verdict.sha256 for one in made if one.verdict}) == 1
    assert _left(cache_folder) == ["kernels.json", "kernels.so"]


def test_an_interrupted_build_leaves_nothing_and_a_killed_one_is_swept(
    script: Script, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    script("true")
    (cache_folder / "native" / "build-killed" / "zig").mkdir(parents=True)
    (cache_folder / "native").chmod(0o700)
    (cache_folder / "native" / ".kernels-x.so.0a1b2c3d.tmp").write_text("half")

    def interrupted(command: list[str], *_: object) -> subprocess.CompletedProcess[str]:
        if "-o" not in command:
            return subprocess.CompletedProcess(command, 0, "", "")
        Path(command[command.index("-o") + 1]).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compilers, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.built(ABI)
    assert _left(cache_folder) == []


def _libm(path: Path) -> None:
    """Another library, as whole as ours."""
    code = "import math, sys; print(getattr(math, '__file__', sys.executable))"
    shutil.copy(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip(), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "foreign": _libm,
    "text": lambda path: path.write_text("no library"),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), (path / "inside").mkdir(parents=True)),
    "dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "link": lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")),
    "writable by the group": lambda path: path.chmod(0o660),
    "no verdict": lambda path: path.with_suffix(".json").unlink(),
    "damaged verdict": lambda path: os.truncate(path.with_suffix(".json"), 40),
    "foreign verdict": lambda path: path.with_suffix(".json").write_text('{"size": 1, "sha256": "0"}'),
    "verdict a folder": lambda path: (path.with_suffix(".json").unlink(), path.with_suffix(".json").mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "verdict writable by all": lambda path: path.with_suffix(".json").chmod(0o666),
}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_judged_is_built_again(fake: Fake, damage: str) -> None:
    log = fake("gcc", "12.2.0")
    good = build.built(ABI)
    DAMAGES[damage](good.path)
    forget()
    again = build.built(ABI)
    assert _builds(log) == 2
    assert (again.path, again.notice) == (good.path, "")
    assert again.verdict == store.recorded(again.path)
    forget()
    build.built(ABI)
    assert _builds(log) == 2


@needs_compiler
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_planted_file_of_another_user_is_not_loaded(fake: Fake) -> None:
    log = fake("gcc", "12.2.0")
    path = build.built(ABI).path
    for planted in (path, path.with_suffix(".json")):
        os.chown(planted, 12345, 12345)
        forget()
        build.built(ABI)
    assert _builds(log) == 3
    assert {file.stat().st_uid for file in (path, path.with_suffix(".json"))} == {0}


def _another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


def _others_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o770)


def _in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("a file where a folder should be")


def _noexec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def statvfs(path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_flag=os.ST_NOEXEC if path.is_relative_to(folder) else 0)

    monkeypatch.setattr(os, "statvfs", statvfs)


def _replaceable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    folder.parent.chmod(0o777)


def _full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(store, "write_atomic", write)


@needs_compiler
@pytest.mark.parametrize(
    ("spoil", "notice"),
    [
        (_another_user, "native belongs to another user; set SELFSPEC_TUNE_CACHE to a folder of your own"),
        (_others_write, "others can write to "),
        (_in_the_way, "native cannot be used ("),
        (_noexec, "native lies on a volume that runs no programs (noexec); set"),
        (_replaceable, "others can put another folder in the place of "),
        (_full, "native cannot be written ("),
    ],
)
def test_an_unusable_cache_is_named_and_the_kernels_serve_this_run(
    fake: Fake, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], notice: str
) -> None:
    fake("gcc", "12.2.0")
    folder = cache_folder / "native"
    spoil(folder, monkeypatch)
    found = build.built(ABI)
    assert notice in found.notice
    assert found.describe().endswith(f"90 % of a plain read (built for this run only: {found.notice})")
    assert not found.path.is_relative_to(cache_folder)
    assert found.path.parent.stat().st_mode & 0o777 == 0o700
    assert build.built(ABI) is found
    forget()
    assert not found.path.parent.exists()


@needs_compiler
def test_where_no_volume_runs_programs_nothing_is_compiled(
    fake: Fake, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake("gcc", "12.2.0")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(
        NativeUnavailableError, match=r"lies on a volume that runs no programs \(noexec\); set TMPDIR or"
    ):
        build.built(ABI)
    assert _builds(log) == 0


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o755, False), (0o1777, False), (0o777, True), (0o775, True), (0o1775, False)]
)
def test_a_cache_is_as_safe_as_the_folders_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_exposed: bool
) -> None:
    monkeypatch.setattr(store, "_is_own", lambda group: False)
    tmp_path.chmod(mode)
    assert store._others_may_replace_in(tmp_path) is is_exposed


def test_a_folder_in_another_users_is_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_uid=12345, st_mode=0o40755, st_gid=0))
    assert store._others_may_replace_in(tmp_path)


def test_a_users_own_group_is_no_other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    names = {1000: "ann", 100: "users"}
    monkeypatch.setattr(grp, "getgrgid", lambda group: SimpleNamespace(gr_name=names[group]))
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_name="ann"))
    assert [store._is_own(group) for group in (0, 1000, 100, 77)] == [True, True, False, False]


@needs_compiler
def test_a_library_is_on_disk_before_its_verdict(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves no verdict, or one that the library does not fit."""
    fake("gcc", "12.2.0")
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = build.built(ABI).path
    order = [Path(name).name.split(".")[2] if ".tmp" in name else "folder" for name in synced]
    assert order == ["so", "folder", "json", "folder"]
    assert Path(synced[1]) == path.parent


@needs_compiler
def test_where_nothing_can_be_written_there_are_no_kernels(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("gcc", "12.2.0")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomic", full)
    with pytest.raises(NativeUnavailableError, match=r"selfspec-kernels-.* cannot be written"):
        build.built(ABI)


# -- the wheel's own libraries -----------------------------------------------------------------------------------


@pytest.fixture
def wheel(fake: Fake) -> build.Manifest:
    """A library as it lies in an installed wheel, and no compiler any more."""
    fake("gcc", "12.2.0")
    build.FOLDER.mkdir()
    path = build.FOLDER / build.library_name(chosen_level())
    compilers.candidates()[0].compile(chosen_level(), path)
    (build.FOLDER.parent / "bin" / "gcc").unlink()
    digest = sha256(path.read_bytes()).hexdigest()
    manifest = build.Manifest(
        sources=compilers.source_digest(), flags=compilers.FLAGS, compiler="zig 1", libraries={path.name: digest}
    )
    (build.FOLDER / build.MANIFEST).write_text(manifest.model_dump_json())
    return manifest


@needs_compiler
def test_a_library_in_the_wheel_needs_no_compiler(wheel: build.Manifest, cache_folder: Path) -> None:
    found = build.built(ABI)
    assert found.describe() == f"native kernels {chosen_level().name}, prebuilt by zig 1"
    assert found.path.parent == build.FOLDER
    assert not cache_folder.exists()


@needs_compiler
@pytest.mark.parametrize("damage", ["other sources", "truncated", "no such level", "damaged manifest"])
def test_a_library_in_the_wheel_must_be_of_these_sources(wheel: build.Manifest, fake: Fake, damage: str) -> None:
    path = build.FOLDER / build.library_name(chosen_level())
    if damage == "other sources":
        (compilers.KERNELS / "new.h").write_text("")
    elif damage == "truncated":
        os.truncate(path, 1000)
    elif damage == "no such level":
        path.unlink()
    else:
        (build.FOLDER / build.MANIFEST).write_text(json.dumps({"sources": 3}))
    with pytest.raises(NativeUnavailableError, match="there is no C compiler"):
        build.built(ABI)
    forget()
    fake("gcc", "12.2.0")
    assert build.built(ABI).maker == "gcc 12.2.0"


# -- loading -----------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_library_made_for_another_system_is_built_here(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    """It is byte for byte what was made, but cannot be loaded, or lacks what is called."""
    log = fake("gcc", "12.2.0")
    monkeypatch.setattr(binding, "ABI", ABI)
    with pytest.raises(NativeUnavailableError, match=r"the built kernels could not be loaded \(.*undefined symbol"):
        binding.load_library()
    assert _builds(log) == 2
    assert binding.status().startswith("no native kernels: the built kernels could not be loaded")
    assert _builds(log) == 2


@needs_compiler
def test_a_library_of_another_interface_is_not_called(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    fake("gcc", "12.2.0")
    path = build.built(ABI).path
    with pytest.raises(OSError, match=rf"its interface is {re.escape(str(ABI))}, not \({binding.ABI_VERSION}, "):
        binding._opened(path)


# -- without a compiler ------------------------------------------------------------------------------------------


_CHOOSE = """
import sys
sys.modules["ziglang"] = None
from selfspec_tune.engine import choose_runner
from selfspec_tune.engine.kernels import status
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
    reason = "there is no C compiler (clang, gcc or cc, or the Python package ziglang); install one, or name it in $CC"
    notice, name, status, refusal = run.stdout.splitlines()
    assert name == "fast"
    assert notice == f"{checkpoint} runs without our native kernels, so decoding is slower: {reason}."
    assert status == f"no native kernels: {reason}"
    assert refusal == (f"`runner` native cannot serve {checkpoint}: {reason}. Use `runner` auto or reference.")

"""C compilers: those that are here, the best first, and how each is told what to make."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfspec_tune.cpu import Level
from selfspec_tune.engine.kernels import guard
from selfspec_tune.errors import NativeUnavailableError

KERNELS = Path(__file__).with_name("c")
SOURCE = KERNELS / "kernels.c"  # includes whatever lies beside it
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=off", "-Wno-psabi"),
)
LIBRARY = ("-shared",)
PROGRAM = ("-DKERNELS_MAIN",)  # which tests the kernels and says how that went

# Names to look for, the best compiler first; older versions than these are tried last.
_NAMES = (
    *("clang", *(f"clang-{number}" for number in range(21, 13, -1))),
    *("gcc", *(f"gcc-{number}" for number in range(15, 10, -1))),
    "cc",
)
_ZIG = (sys.executable, "-m", "ziglang", "cc")
# clang 14 keeps the sums of two rows in memory: verification is then several times slower.
_OLDEST = {"clang": 16, "gcc": 11}
_COMPILE_SECONDS = 300
_VERSION_SECONDS = 30


@dataclass(frozen=True)
class Compiler:
    """A compiler's command with its own arguments. ``name`` is for people: clang 14.0.6."""

    command: tuple[str, ...]
    name: str
    is_known_good: bool

    def compile(self, level: Level, output: Path, *, form: Sequence[str] = LIBRARY, target: str | None = None) -> None:
        """Make ``output`` of the kernels. ``target`` is what zig calls another system; default: this one.

        Raises `NativeUnavailableError` with what the compiler says; its name is to be put before that.
        """
        files = (f'-DKERNELS_LEVEL="{level.name}"', str(SOURCE), "-o", str(output), "-lm")
        command = [*self.command, *self._machine_flags(level, target), *FLAGS, *form, *files]
        # Compilers would keep what they make on the way elsewhere: zig for ever, others where they are killed.
        scratch = str(output.parent / "zig")
        environment = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch, "TMPDIR": str(output.parent)}
        run = _run(command, _COMPILE_SECONDS, environment)
        if run.returncode or not output.is_file():
            problem = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip()[-200:])
            raise NativeUnavailableError(f"could not compile them ({problem})")

    def _machine_flags(self, level: Level, target: str | None) -> tuple[str, ...]:
        if not _is_zig(self.command):
            return level.flags
        system = f"{level.machine}-macos" if platform.system() == "Darwin" else f"{level.machine}-linux-gnu.2.17"
        wide = tuple(flag for flag in level.flags if flag.startswith("-mprefer"))
        return ("-target", target or system, f"-mcpu={level.zig_cpu}", *wide)


def candidates() -> list[Compiler]:
    """The compilers to try, best first: ``$CC`` alone, or clang, gcc, cc, zig, and then the old and unknown ones.

    Raises `NativeUnavailableError` where there is none.
    """
    different: dict[str, Compiler] = {}
    for command in found():
        compiler = _examined(command)
        different.setdefault(compiler.name, compiler)
    return sorted(different.values(), key=lambda compiler: not compiler.is_known_good)


def found() -> list[tuple[str, ...]]:
    """The commands of `candidates`, by their names alone; some may be one compiler.

    Raises `NativeUnavailableError` where there is none.
    """
    if stated := _stated():
        return [stated]
    commands: list[tuple[str, ...]] = [(path,) for name in _NAMES if (path := shutil.which(name))]
    if find_spec("ziglang"):
        commands.append(_ZIG)
    if not commands:
        raise NativeUnavailableError(
            "there is no C compiler (clang, gcc or cc, or the Python package ziglang); install one, or name it in $CC"
        )
    return commands


def zig() -> Compiler | None:
    """The compiler of the Python package ziglang, which compiles for other systems too; None where it is not here."""
    return _examined(_ZIG) if find_spec("ziglang") else None


def identity() -> str:
    """What a library depends on besides the level and the processor: sources, flags, and the compiler in ``$CC``."""
    stated = _stated()
    said = _version_text(stated) if stated else ""
    return "\n".join((source_digest(), *FLAGS, *LIBRARY, *stated, said))


def source_digest() -> str:
    """SHA-256 of all the sources and their names."""
    digest = sha256()
    for path in sorted(KERNELS.iterdir()):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _stated() -> tuple[str, ...]:
    stated = os.environ.get("CC", "")
    try:
        command = tuple(shlex.split(stated))
    except ValueError as error:
        raise NativeUnavailableError(f"$CC is {stated!r}, which is no command ({error})") from error
    if command and shutil.which(command[0]) is None:
        raise NativeUnavailableError(f"$CC names {command[0]!r}, and there is no such program; correct or unset it")
    return command


def _examined(command: tuple[str, ...]) -> Compiler:
    if command == _ZIG:
        return Compiler(command, f"zig {version('ziglang')}", is_known_good=True)
    text = _version_text(command)
    kind = "clang" if "clang version" in text else "gcc" if "Free Software Foundation" in text else ""
    pattern = r"clang version (\d+)([.\d]*)" if kind == "clang" else r"\) (\d+)([.\d]*)"
    match = re.search(pattern, text) if kind else None
    if match is None:
        return Compiler(command, shlex.join(command), is_known_good=False)
    return Compiler(command, f"{kind} {''.join(match.groups())}", is_known_good=int(match[1]) >= _OLDEST[kind])


def _version_text(command: Sequence[str]) -> str:
    try:
        return _run([*command, "--version"], _VERSION_SECONDS).stdout
    except NativeUnavailableError:
        return ""


def _is_zig(command: Sequence[str]) -> bool:
    return any(Path(part).name in ("zig", "ziglang") for part in command)


def _run(
    command: list[str], seconds: float, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, which ends with this process at the latest, and with it all that it has started."""
    guarded = [sys.executable, "-I", "-S", guard.__file__, *command]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    heard, held = os.pipe()  # the guard hears this process end
    try:
        with subprocess.Popen(
            guarded, stdin=heard, env={**os.environ, **(variables or {})}, start_new_session=True, **pipes
        ) as process:
            try:
                output, said = process.communicate(timeout=seconds)
            finally:
                os.close(held)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailableError(f"did not run (it timed out after {seconds:g} s)") from error
    except OSError as error:
        raise NativeUnavailableError(f"did not run ({error})") from error
    finally:
        os.close(heard)
    if process.returncode == guard.NOT_STARTED:
        raise NativeUnavailableError(f"did not run ({said.strip()})")
    return subprocess.CompletedProcess(command, process.returncode, output, said)

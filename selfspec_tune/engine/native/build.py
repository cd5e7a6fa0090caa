"""Compiling the kernels with the machine's own C compiler; the result is kept in the cache."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.files import short_hash
from selfspec_tune.models.default_model import CACHE_VARIABLE, cache_directory

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wno-psabi"),
)
_COMPILE_SECONDS = 300


def compiler() -> list[str]:
    """The C compiler and its own arguments: ``$CC``, or the first of cc, gcc and clang that is there.

    Raises `NativeUnavailableError` where there is none.
    """
    stated = os.environ.get("CC", "")
    try:
        command = shlex.split(stated)
    except ValueError as error:
        raise NativeUnavailableError(f"$CC is {stated!r}, which is no command ({error})") from error
    if command and shutil.which(command[0]) is None:
        raise NativeUnavailableError(f"$CC names {command[0]!r}, and there is no such program; correct or unset it")
    found = command or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if not found:
        raise NativeUnavailableError("there is no C compiler (cc, gcc or clang); install one, or name it in $CC")
    return found


def library_path() -> Path:
    """The compiled kernels; built when this machine, compiler and source have none yet.

    Raises `NativeUnavailableError` where there is no compiler or it fails.
    """
    outcome = _outcome()
    if isinstance(outcome, str):
        raise NativeUnavailableError(outcome)
    return outcome


def rebuild(path: Path) -> Path:
    """Build the kernels at `library_path` anew: what lies there is no use."""
    _build(compiler(), path)
    return path


def status() -> str:
    """One line for a person: whether the kernels are there, or why not."""
    try:
        return f"native kernels built ({library_path().name})"
    except NativeUnavailableError as error:
        return f"no native kernels: {error}"


@cache
def _outcome() -> Path | str:
    """Where the kernels are, or why nowhere: a compiler that fails is not asked twice."""
    try:
        command = compiler()
        target = cache_directory() / "native" / f"kernels-{_identity(command)}.so"
        if not _exists(target):
            _build(command, target)
        return target
    except NativeUnavailableError as error:
        return str(error)


def _identity(command: list[str]) -> str:
    """Changes with the source, the flags, the compiler and the processor."""
    version = _run([*command, "--version"]).stdout
    return short_hash("\n".join((SOURCE.read_text(), " ".join((*command, *_FLAGS)), version, _processor())))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))[:20_000]


def _exists(target: Path) -> bool:
    try:
        return target.exists()
    except OSError as error:
        raise _unwritable(target, error) from error


def _build(command: list[str], target: Path) -> None:
    """Compile beside ``target`` and rename: an interrupted build leaves nothing there, and two at once do no harm."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            run = _run([*command, *_FLAGS, str(SOURCE), "-o", str(made), "-lm"])
            if run.returncode or not made.is_file():
                problem = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip()[-200:])
                raise NativeUnavailableError(f"{shlex.join(command)} could not compile them ({problem})")
            os.replace(made, target)
    except OSError as error:
        raise _unwritable(target, error) from error


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} did not run ({error})") from error


def _unwritable(target: Path, error: OSError) -> NativeUnavailableError:
    return NativeUnavailableError(
        f"{target.parent} does not take them ({error.strerror or error}); set {CACHE_VARIABLE} to a folder that does"
    )

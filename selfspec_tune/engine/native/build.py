"""Compiling the kernels with the machine's own C compiler; the result is kept in the cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from selfspec_tune.errors import SelfSpecError
from selfspec_tune.files import short_hash
from selfspec_tune.models.default_model import cache_directory

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"),
)
_COMPILE_SECONDS = 300


class NativeUnavailableError(SelfSpecError):
    """The kernels cannot be had on this machine; the message says why."""


def compiler() -> str | None:
    """The C compiler: ``$CC``, or the first of cc, gcc and clang that is there."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for name in names if (path := shutil.which(name))), None)


@cache
def library_path() -> Path:
    """The compiled kernels; built when this machine, compiler and source have none yet.

    Raises `NativeUnavailableError` where there is no compiler or it fails.
    """
    command = compiler()
    if command is None:
        raise NativeUnavailableError("there is no C compiler (cc, gcc, clang, or $CC)")
    target = cache_directory() / "native" / f"kernels-{_identity(command)}.so"
    if not target.exists():
        _build(command, target)
    return target


def status() -> str:
    """One line for a person: whether the kernels are there, or why not."""
    try:
        return f"native kernels built ({library_path().name})"
    except NativeUnavailableError as error:
        return f"no native kernels: {error}"


def _identity(command: str) -> str:
    """Changes with the source, the flags, the compiler and the processor."""
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return short_hash("\n".join((SOURCE.read_text(), " ".join(_FLAGS), version, _processor())))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))[:20_000]


def _build(command: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            run = subprocess.run(
                [command, *_FLAGS, str(SOURCE), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                check=False,
                timeout=_COMPILE_SECONDS,
            )
            if run.returncode:
                problem = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip()[-200:])
                raise NativeUnavailableError(f"{command} could not compile them ({problem})")
            os.replace(made, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"they could not be built ({error})") from error

"""Where a result comes from: program, packages, machine, load and settings.

Nothing here imports torch; what only the engine knows (the GPU's name, the number of
threads in use) is handed in. No user or host name is recorded.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from selfspec_tune.cpu import cpu_quota
from selfspec_tune.files import writable

PACKAGES = ("torch", "transformers", "optuna", "numpy")
_OWN_PACKAGE = "selfspec-tune"
_GIT_SECONDS = 5.0


def collect(
    *,
    model: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    gpu: str | None = None,
    threads: int | None = None,
    seed: int | None = None,
    argv: Sequence[str] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The ``provenance`` object of our files: JSON values, None where something is unknown.

    Args:
        model: what identifies the model, as `LoadedModel.describe` gives it.
        threads: of the numeric library, as pinned.
        argv: the command line; by default this process's.
        extra: further entries, such as ``prompts``.
    """
    command = [writable(argument) for argument in (sys.argv if argv is None else argv)]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(command[0]).name, *command[1:]] if command else [],
        "selfspec_tune": {"version": package_version(_OWN_PACKAGE), "commit": package_commit()},
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "hardware": hardware(gpu=gpu, threads=threads),
        "model": dict(model) if model is not None else None,
        "dtype": dtype,
        "device": device,
        "seed": seed,
        **extra,
    }


def hardware(*, gpu: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """The machine now. ``memory_gib`` is all of it; load over one minute; clock in MHz.

    ``cpu_quota``: how many cores' time a container gives; None: all of them.
    """
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": num_cores(),
        "cpu_quota": cpu_quota(),
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": load_average(),
        "clock_mhz": clock_mhz(),
        "gpu": gpu,
    }


def package_version(name: str) -> str | None:
    """A distribution's version without importing it, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_commit(package: Path | None = None) -> str | None:
    """The git commit that this package runs from, ``+`` appended if files differ from it.

    None outside a checkout: an installed package says nothing of the folder around it.
    """
    root = (package or Path(__file__).parent).parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + "+" if _git(root, "status", "--porcelain") else commit


def cpu_model() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)


def num_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Runnable threads over the last minute, None where the system does not count them."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def clock_mhz() -> float | None:
    """Current CPU clock, None where it cannot be read."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return round(frequency.current, 1) if frequency and frequency.current else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

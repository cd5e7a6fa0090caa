"""Levels: the instructions that the kernels are compiled for, and the highest level that this processor has."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from selfspec_tune.errors import NativeUnavailableError, UsageError

LEVEL_VARIABLE = "SELFSPEC_TUNE_CPU_LEVEL"
CPU_INFO = Path("/proc/cpuinfo")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of the same
# What macOS calls the flags that Linux lists.
_DARWIN = {
    "bf16": "hw.optional.arm.FEAT_BF16",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
}


@dataclass(frozen=True)
class Level:
    """What one compiled library is for.

    ``machine`` is x86_64 or aarch64, ``needs`` are flags as /proc/cpuinfo lists them, ``flags`` tell
    gcc and clang, and ``zig_cpu`` tells zig.
    """

    name: str
    machine: str
    needs: frozenset[str]
    flags: tuple[str, ...]
    zig_cpu: str
    has_bf16_dot: bool = False


_AVX2 = frozenset(["avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"])
_AVX512 = _AVX2 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
_WIDE = "-mprefer-vector-width=512"  # else clang halves every vector

# Lowest first.
LEVELS = (
    Level("x86-64", "x86_64", frozenset(), ("-march=x86-64",), "x86_64"),
    Level("x86-64-v3", "x86_64", _AVX2, ("-march=x86-64-v3",), "x86_64_v3"),
    Level("x86-64-v4", "x86_64", _AVX512, ("-march=x86-64-v4", _WIDE), "x86_64_v4"),
    Level(
        "x86-64-v4-bf16",
        "x86_64",
        _AVX512 | {"avx512_bf16", "avx512_vnni"},
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", _WIDE),
        "x86_64_v4+avx512bf16+avx512vnni",
        has_bf16_dot=True,
    ),
    Level("aarch64", "aarch64", frozenset(), ("-march=armv8-a",), "generic"),
    Level(
        "aarch64-bf16",
        "aarch64",
        frozenset({"bf16", "i8mm", "asimddp"}),
        ("-march=armv8.2-a+bf16+i8mm+dotprod",),
        "generic+v8_2a+bf16+i8mm+dotprod",
        has_bf16_dot=True,
    ),
)


@cache
def chosen_level() -> Level:
    """The highest level that this processor has, or the lower one that ``$SELFSPEC_TUNE_CPU_LEVEL`` names.

    Raises:
        UsageError: the variable names no level, or one that this processor lacks.
        NativeUnavailableError: there are no kernels for this kind of processor.
    """
    levels = available_levels()
    if not levels:
        raise NativeUnavailableError(f"there are kernels for x86-64 and aarch64, and this is {platform.machine()}")
    stated = os.environ.get(LEVEL_VARIABLE, "").strip()
    if not stated:
        return levels[-1]
    chosen = next((level for level in levels if level.name == stated), None)
    if chosen is None:
        is_known = any(level.name == stated for level in LEVELS)
        problem = "a level that this processor lacks" if is_known else "no level"
        names = ", ".join(level.name for level in levels)
        raise UsageError(
            f"{LEVEL_VARIABLE} is {stated!r}, which is {problem}. This processor has: {names}. "
            "Set it to one of these, or unset it."
        )
    return chosen


def available_levels() -> list[Level]:
    """The levels that this processor has, lowest first; none on other kinds of processor."""
    found = processor_flags()
    return [level for level in LEVELS if level.machine == machine() and level.needs <= found]


def machine() -> str:
    """The kind of this processor: x86_64 or aarch64, by whichever name the system calls it."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def processor_flags() -> frozenset[str]:
    """What every core of this processor can do, as Linux names it; nothing where the system does not tell."""
    if platform.system() == "Darwin":
        return frozenset(flag for flag, name in _DARWIN.items() if _sysctl(name) == "1")
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    cores = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))]
    return frozenset.intersection(*cores) if cores else frozenset()


def _sysctl(name: str) -> str:
    try:
        run = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()

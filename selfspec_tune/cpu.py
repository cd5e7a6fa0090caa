"""The processor: its data caches, the time of it that a container gives, and the instructions that it has."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from selfspec_tune.errors import NativeUnavailableError, UsageError

_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
THREADS_VARIABLE = "OMP_NUM_THREADS"
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
LEVEL_VARIABLE = "SELFSPEC_TUNE_CPU_LEVEL"
CPU_INFO = Path("/proc/cpuinfo")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of the same
# What macOS calls the flags that Linux lists.
_DARWIN = {
    "bf16": "hw.optional.arm.FEAT_BF16",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
}


@dataclass(frozen=True, slots=True, order=True)
class Cache:
    """One cache: its level, its size, and the list of cores that share it."""

    level: int
    num_bytes: int
    shared_by: str


def cpu_caches(cpus: Path = _CPUS) -> list[Cache]:
    """Data caches of the cores that this process may use, each once, by level; empty where nothing is told."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return sorted({cache for cpu in allowed for cache in _caches_of(cpus / f"cpu{cpu}" / "cache")})


def last_level_bytes(caches: list[Cache]) -> int:
    """Bytes of the caches of the last level together; 0 where none is known."""
    last = max((cache.level for cache in caches), default=0)
    return sum(cache.num_bytes for cache in caches if cache.level == last)


def _caches_of(folder: Path) -> Iterator[Cache]:
    for index in folder.glob("index*"):
        try:
            kind, level, size, shared_by = (
                (index / name).read_text(encoding="utf-8").strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match is not None and level.isdecimal():
            yield Cache(int(level), int(match[1]) * _UNITS[match[2]], shared_by)


def cpu_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """Cores' worth of time that this process may use, the least of what its groups allow; None: no limit is known."""
    return min(_quotas(groups, own), default=None)


def most_threads(cores: int, quota: float | None) -> int:
    """How many threads that never rest find the time of ``cores`` and of a ``quota``; at least one."""
    return cores if quota is None else max(1, min(cores, int(quota)))


def stated_threads() -> int:
    """The threads that ``$OMP_NUM_THREADS`` asks for; 0 where it asks for none."""
    first, _, _ = os.environ.get(THREADS_VARIABLE, "").partition(",")  # one number for each level of nesting
    return int(first) if first.strip().isdecimal() else 0


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    for controllers, path in _memberships(own):
        if controllers == "":  # version 2
            for folder in _up(groups, path):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):
            # Mounted under the names of all its controllers; a link with the short name is usual, not certain.
            root = groups / "cpu" if (groups / "cpu").exists() else groups / controllers
            for folder in _up(root, path):
                yield from _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _memberships(own: Path) -> Iterator[tuple[str, str]]:
    """Controllers and path of each of the process's groups."""
    for line in _read(own).splitlines():
        if line.count(":") >= 2:
            _, controllers, path = line.split(":", 2)
            yield controllers, path


def _up(root: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it. A container sees its own group at the root, whatever its path says."""
    folder = root / path.strip("/")
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _ratio(quota: str, period: str) -> Iterator[float]:
    """Nothing where the group has no limit: ``max`` in version 2, -1 in version 1, or no such file."""
    if quota.isdecimal() and period.isdecimal() and int(period):
        yield int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


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

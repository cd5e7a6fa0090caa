"""How much processor time a container gives: Linux's control groups, version 2 and 1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


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

"""The processor's data caches, as Linux tells of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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

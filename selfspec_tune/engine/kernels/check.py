"""Checks a compiled library; run as a program of its own, for a wrong compiler's code may crash.

    python -I -S check.py LIBRARY THREADS LEAST_SHARE

Prints one JSON object: ``level``, ``abi``, ``failed`` (threads and number of the self-test's check
that failed, or null), and ``speed`` and ``read`` in bytes per second: of a bfloat16 weight times one
token, and of a plain read, in the best of up to three rounds.
Needs nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import json
import sys

_BFLOAT16, _PLAIN_READ = 1, -1
_ROUNDS = 3  # until one reaches the share: another program may hold the memory for a while
_ABI_VALUES = 7


def check(path: str, threads: int, least_share: float) -> dict[str, object]:
    """What the module says it prints. Raises what ctypes does where the library is none of ours."""
    library = ctypes.CDLL(path)
    library.kernels_level.restype = ctypes.c_char_p
    library.kernels_abi.restype = ctypes.c_int64
    library.self_test_speed.restype = ctypes.c_double
    found: dict[str, object] = {
        "level": library.kernels_level().decode(),
        "abi": [library.kernels_abi(which) for which in range(_ABI_VALUES)],
        "failed": None,
        "speed": 0.0,
        "read": 1.0,
    }
    for count in sorted({1, threads}):
        if failed := library.self_test(count):
            return {**found, "failed": [count, failed]}
    for _ in range(_ROUNDS):
        read = library.self_test_speed(_PLAIN_READ, 1, threads)
        speed = library.self_test_speed(_BFLOAT16, 1, threads)
        if speed * found["read"] > found["speed"] * read:
            found |= {"speed": speed, "read": read}
        if speed >= least_share * read:
            break
    return found


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))

"""The verdict on a compiled library: is it right, and how fast; kept in a file beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from selfspec_tune.cpu_levels import Level
from selfspec_tune.cpu_quota import cpu_quota, most_threads
from selfspec_tune.engine.native.compilers import Compiler
from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.provenance import num_cores

LEAST_SHARE = 0.4  # of a plain read: compilers that keep vectors out of registers reach half of it
_CHECK = Path(__file__).with_name("check.py")
_CHECK_SECONDS = 180


class Verdict(BaseModel):
    """What was made by whom, how fast it is (bytes per second), and the file's size and hash.

    ``passed_over`` says what was wrong with other compilers, and ``found`` names all that were here.
    """

    model_config = ConfigDict(frozen=True)

    level: str
    compiler: str
    speed: float
    read_speed: float
    size: int
    sha256: str
    made: str
    passed_over: tuple[str, ...] = ()
    found: tuple[tuple[str, ...], ...] = ()

    @property
    def share(self) -> float:
        """The speed of a bfloat16 weight times one token, of a plain read's."""
        return self.speed / self.read_speed if self.read_speed > 0 else 0.0

    @property
    def percent(self) -> str:
        """The share for a person."""
        return f"{100 * self.share:.0f} %"

    @property
    def is_slow(self) -> bool:
        return self.share < LEAST_SHARE

    @classmethod
    def read(cls, path: Path) -> Verdict | None:
        """The verdict in a file; None where that is no verdict, or cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def fits(self, library: Path) -> bool:
        """Whether a file is, byte for byte, the one that was judged."""
        try:
            content = library.read_bytes()
        except OSError:
            return False
        return (len(content), sha256(content).hexdigest()) == (self.size, self.sha256)


def judge(library: Path, compiler: Compiler, level: Level, abi: list[int]) -> Verdict:
    """Run the library's own test in another process.

    ``abi`` is the version and the sizes of structures that Python expects.
    Raises `NativeUnavailableError` where the library is wrong, with what is.
    """
    found = _checked(library)
    if found["level"] != level.name:
        raise NativeUnavailableError(f"made kernels for {found['level']}, not {level.name}")
    if found["abi"] != abi:
        raise NativeUnavailableError(f"made kernels of another interface ({found['abi']}, not {abi})")
    if found["failed"]:
        threads, number = found["failed"]
        raise NativeUnavailableError(f"made wrong code (check {number} failed with {threads} threads)")
    content = library.read_bytes()
    return Verdict(
        level=level.name,
        compiler=compiler.name,
        speed=found["speed"],
        read_speed=found["read"],
        size=len(content),
        sha256=sha256(content).hexdigest(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _checked(library: Path) -> dict[str, Any]:
    threads = most_threads(num_cores(), cpu_quota())
    command = [sys.executable, "-I", "-S", str(_CHECK), str(library), str(threads), str(LEAST_SHARE)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailableError(f"made code whose check does not end within {_CHECK_SECONDS} s") from error
    if run.returncode < 0:
        raise NativeUnavailableError(f"made code that crashes ({signal.Signals(-run.returncode).name})")
    if run.returncode:
        raise NativeUnavailableError(f"made code that cannot be loaded ({run.stderr.strip().splitlines()[-1]})")
    return dict(json.loads(run.stdout))

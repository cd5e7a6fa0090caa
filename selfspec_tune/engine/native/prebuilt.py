"""Libraries that came inside the wheel: no compiler is needed for them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from selfspec_tune.cpu_levels import Level
from selfspec_tune.engine.native.compilers import FLAGS, source_digest

FOLDER = Path(__file__).with_name("prebuilt")
MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What the libraries were made of and by whom; ``libraries`` maps each file's name to its SHA-256."""

    model_config = ConfigDict(frozen=True)

    sources: str
    flags: tuple[str, ...]
    compiler: str
    libraries: dict[str, str]


def library_name(level: Level) -> str:
    return f"kernels-{level.name}.so"


def prebuilt(level: Level) -> tuple[Path, str] | None:
    """The wheel's library for a level and the compiler that made it; None where there is none of these sources."""
    try:
        manifest = Manifest.model_validate_json((FOLDER / MANIFEST).read_bytes())
        library = FOLDER / library_name(level)
        digest = sha256(library.read_bytes()).hexdigest()
    except (OSError, ValidationError):
        return None
    is_of_these = (manifest.sources, manifest.flags) == (source_digest(), FLAGS)
    return (library, manifest.compiler) if is_of_these and manifest.libraries.get(library.name) == digest else None

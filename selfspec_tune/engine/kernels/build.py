"""Having the kernels: from the wheel, from the cache, or compiled here by the first compiler that does it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from selfspec_tune import provenance
from selfspec_tune.cpu import Level, chosen_level
from selfspec_tune.engine.kernels import compilers, store
from selfspec_tune.engine.kernels.compilers import FLAGS, source_digest
from selfspec_tune.engine.kernels.store import LibraryVerdict, UnusableFolderError, judge
from selfspec_tune.errors import NativeUnavailableError
from selfspec_tune.files import short_hash

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


@dataclass(frozen=True)
class Built:
    """A library that may be loaded, what is known of it, and what about the cache is not as it should be."""

    path: Path
    level: str
    maker: str
    verdict: LibraryVerdict | None = None  # none on what came with the wheel
    notice: str = ""

    def describe(self) -> str:
        """One line for a person."""
        line = f"native kernels {self.level}, {self.maker}"
        if self.verdict is not None:
            line += f": {self.verdict.percent} of a plain read"
            if self.verdict.is_slow:
                line += ", which is slow; a newer clang or gcc, or the Python package ziglang, may do better"
        return f"{line} (built for this run only: {self.notice})" if self.notice else line


def built(abi: Sequence[int], *, unloadable: frozenset[Path] = frozenset()) -> Built:
    """The kernels for this processor; built when no good library is there besides those that are ``unloadable``.

    ``abi`` is the version and the sizes of structures that the caller expects. Raises
    `NativeUnavailableError` where there is no compiler or none does it right, and `UsageError`
    where the level asked for is none of this processor.
    """
    outcome = _outcome(chosen_level(), tuple(abi), unloadable)
    if isinstance(outcome, str):
        raise NativeUnavailableError(outcome)
    return outcome


def obtainable() -> bool:
    """Whether there are kernels for this processor, or something to compile them with. Compiles nothing."""
    try:
        return prebuilt(chosen_level()) is not None or bool(compilers.found())
    except NativeUnavailableError:
        return False


@cache
def _outcome(level: Level, abi: tuple[int, ...], unloadable: frozenset[Path]) -> Built | str:
    """The kernels, or why there are none: a compiler that fails is not asked twice."""
    try:
        if (ready := prebuilt(level)) and ready[0] not in unloadable:
            path, maker = ready
            return Built(path, level.name, f"prebuilt by {maker}")
        parts = (compilers.identity(), *level.flags, level.zig_cpu, provenance.cpu_model() or "", *map(str, abi))
        identity = short_hash("\n".join(parts))
        name = f"kernels-{level.name}-{identity}.so"
        try:
            return _had(store.shared_folder() / name, level, abi, unloadable)
        except UnusableFolderError as error:
            return _had(store.private_folder() / name, level, abi, unloadable, notice=str(error))
    except (NativeUnavailableError, UnusableFolderError) as error:
        return str(error)


def _had(library: Path, level: Level, abi: tuple[int, ...], unloadable: frozenset[Path], *, notice: str = "") -> Built:
    """The library at a path; built there, unless a good one is."""
    anew = library in unloadable
    verdict = None if anew else _kept(library)
    if verdict is None:
        with store.build_folder(library.parent) as folder:
            verdict = None if anew else _kept(library)  # another process may have built it meanwhile
            if verdict is None:
                made, verdict = _made(folder, level, list(abi))
                store.keep(made, verdict, library)
    return Built(library, level.name, verdict.compiler, verdict, notice)


def _kept(library: Path) -> LibraryVerdict | None:
    """What is known of a library that may be loaded; None where building may give a better one."""
    verdict = store.recorded(library)
    is_final = verdict and (not verdict.is_slow or verdict.found == _found())
    return verdict if is_final else None


def _found() -> tuple[tuple[str, ...], ...]:
    try:
        return tuple(compilers.found())
    except NativeUnavailableError:
        return ()


def _made(folder: Path, level: Level, abi: list[int]) -> tuple[Path, LibraryVerdict]:
    """The first right and fast library of all compilers, or the fastest right one."""
    best: tuple[Path, LibraryVerdict] | None = None
    passed_over: list[str] = []
    for number, compiler in enumerate(compilers.candidates()):
        made = folder / f"{number}.so"
        try:
            compiler.compile(level, made)
            verdict = judge(made, compiler, level, abi)
        except NativeUnavailableError as error:
            passed_over.append(f"{compiler.name} {error}")
            continue
        if best is None or verdict.share > best[1].share:
            best = made, verdict
        if not verdict.is_slow:
            break
        passed_over.append(f"{compiler.name} made slow code ({verdict.percent} of a plain read)")
    if best is None:
        raise NativeUnavailableError("; ".join(passed_over))
    made, verdict = best
    return made, verdict.model_copy(update={"passed_over": tuple(passed_over), "found": _found()})

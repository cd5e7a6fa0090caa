"""What every record and file shares: immutability, plain JSON, a schema, its version, and its provenance."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfspec_tune import files
from selfspec_tune.checks import kind_of_value, shown
from selfspec_tune.errors import FileFormatError, SkipSetError, UsageError
from selfspec_tune.files import first_problem

Path = str | os.PathLike[str]
_Text = str | None
_Count = Annotated[int, Field(ge=0, le=10_000_000)]


class Record(BaseModel):
    """Base of every record: immutable, fields it does not know are kept. From files, true is no number."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the files."""
        plain: dict[str, Any] = _plain(self.model_dump(mode="json", by_alias=True))
        return plain


class Document(Record):
    """A record that is a JSON file of its own, with ``schema`` and ``version`` in front."""

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int] = 1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises `FileFormatError`: missing, corrupt, other schema, newer version."""
        return cls.from_dict(files.read_json(path), origin=os.fspath(path))

    @classmethod
    def from_dict(cls, value: Any, *, origin: str) -> Self:
        """Validate a file's value; ``origin`` names it in errors.

        Raises `FileFormatError`, and `SkipSetError` where it names layers that its model lacks.
        """
        _check_schema(value, cls.SCHEMA, cls.VERSION, origin)
        try:
            document = cls.model_validate(value, strict=True)
            document.check()
        except ValidationError as error:
            problem = (files.first_problem(error) or "").rstrip(".")
            raise FileFormatError(f"{origin} does not fit {cls.SCHEMA}: {problem}.") from error
        except UsageError as error:
            kind = SkipSetError if isinstance(error, SkipSetError) else FileFormatError
            raise kind(f"{origin} does not fit {cls.SCHEMA}: {error}") from error
        return document

    def check(self) -> None:
        """Raise `UsageError` where parts of a file that fit their own kinds do not fit each other."""

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `StorageError`."""
        files.write_json_atomic(path, self.to_dict())


def read_versioned(path: Path, schema: str, version: int) -> dict[str, Any]:
    """The value of a JSON file that states ``schema``, in ``version`` or an older one. Raises `FileFormatError`."""
    value = files.read_object(path)
    _check_schema(value, schema, version, os.fspath(path))
    if value["version"] < 1:
        raise FileFormatError(f"{os.fspath(path)} is version {value['version']} of {schema}; expected 1 to {version}.")
    return value


def _plain(value: Any) -> Any:
    """``value`` with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_schema(value: Any, schema: str, version: int, origin: str) -> None:
    if not isinstance(value, dict) or value.get("schema") != schema:
        stated = value.get("schema", "no schema") if isinstance(value, dict) else kind_of_value(value)
        found = stated[:80] if isinstance(stated, str) else f"the schema {shown(stated)}"
        raise FileFormatError(f"{origin} holds {found}; expected schema {schema}. Is it the right file?")
    found_version = value.get("version")
    if type(found_version) is not int:
        raise FileFormatError(f"{origin} states no version of {schema}; expected a whole number up to {version}.")
    if found_version > version:
        raise FileFormatError(
            f"{origin} is version {shown(found_version)} of {schema}; this program reads up to {version}. "
            "Update selfspec-tune."
        )


class _Program(Record):
    version: _Text = None
    commit: _Text = None


class _Hardware(Record):
    cpu: _Text = None
    gpu: _Text = None
    threads: int | None = None


class _Prompts(Record):
    """As `selfspec_tune.requests.PromptOptions` has them, and the hashes of each split."""

    source: str = ""
    num_prompts: _Count | None = None
    max_new_tokens: _Count = 0
    template: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: _Count = 0
    seed: int = 0
    tasks: list[str] = []
    calibration: list[str] = []
    selection: list[str] = []
    test: list[str] = []
    earlier: list[str] = []


class _Start(Record):
    name: str


class _Standalone(Record):
    acceptance_rate: float | None = None
    draft_tokens: int = Field(ge=1, le=1024)
    decode_speedup: float


class _Search(Record):
    start_from: list[_Start] | None = None
    standalone: _Standalone | None = None


class _Import(Record):
    file: str
    dialect: str


class _Session(Record):
    runs: int | None = None


class _Provenance(Record):
    created: _Text = None
    selfspec_tune: _Program | None = None
    hardware: _Hardware | None = None
    packages: dict[str, _Text] | None = None
    prompts: _Prompts | None = None
    search: _Search | None = None
    seed: int | None = None
    imported_from: _Import | None = None
    sessions: list[_Session] = []
    interrupted: bool = False


def check_provenance(value: dict[str, Any]) -> None:
    """Raise `UsageError` unless it is as `selfspec_tune.provenance.collect` makes it and searches add to it."""
    try:
        _Provenance.model_validate(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"provenance.{first_problem(error)}.") from error

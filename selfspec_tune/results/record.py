"""What every record and file shares: immutability, plain JSON, a schema and its version."""

from __future__ import annotations

import json
import os
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from selfspec_tune import files
from selfspec_tune.errors import FileFormatError

Path = str | os.PathLike[str]


class Record(BaseModel):
    """Base of every record: immutable, fields it does not know are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the files."""
        plain: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
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
        """Validate a file's value; ``origin`` names it in errors."""
        _check_schema(value, cls.SCHEMA, cls.VERSION, origin)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise FileFormatError(f"{origin} does not fit {cls.SCHEMA}: {_first_problem(error)}.") from error

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `StorageError`."""
        files.write_json_atomic(path, self.to_dict())


def read_versioned(path: Path, schema: str, version: int) -> dict[str, Any]:
    """The value of a JSON file that states ``schema``, in ``version`` or an older one. Raises `FileFormatError`."""
    value: dict[str, Any] = files.read_json(path)
    _check_schema(value, schema, version, os.fspath(path))
    if value["version"] < 1:
        raise FileFormatError(f"{os.fspath(path)} is version {value['version']} of {schema}; expected 1 to {version}.")
    return value


def _check_schema(value: Any, schema: str, version: int, origin: str) -> None:
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = value.get("schema", "no schema") if isinstance(value, dict) else type(value).__name__
        raise FileFormatError(f"{origin} holds {found}; expected schema {schema}. Is it the right file?")
    found_version = value.get("version")
    if not isinstance(found_version, int):
        raise FileFormatError(f"{origin} states no version of {schema}; expected a whole number up to {version}.")
    if found_version > version:
        raise FileFormatError(
            f"{origin} is version {found_version} of {schema}; this program reads up to {version}. "
            "Update selfspec-tune."
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the whole"
    return f"{place}: {problem['msg']}"

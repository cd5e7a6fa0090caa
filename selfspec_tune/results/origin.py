"""Those parts of a file's provenance that are read again: what they must be to be shown, or to draw prompts by."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from selfspec_tune.errors import UsageError
from selfspec_tune.files import first_problem
from selfspec_tune.results.record import Record

_Text = str | None
_Count = Annotated[int, Field(ge=0, le=10_000_000)]


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

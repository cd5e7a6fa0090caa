"""``reproduce.toml``: what made a published study, and which of its figures stand for what.

It has a name of its own because a search's folder keeps its configuration in study.toml, which a resumed search must
match field by field.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field

from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import read_toml
from selfspec_tune.results.record import Document, Record

PLAN_FILE = "reproduce.toml"
OWN_PLACES = ("out", "study")
PLACE = re.compile(r"\{([^{}]*)\}")
_WRITERS = ("search", "compare", "bench", "export", "import")
_COMMANDS = (*_WRITERS, "doctor")
_OUTPUTS = ("out", "plot", "csv", "parquet", "spec_bench")
_RUNS_CODE = ("trust_remote_code", "allow_pickle")


def field_of(word: str) -> str | None:
    """The field that a word of a command line sets, ``max_new_tokens``; None where it is no option."""
    return word[2:].replace("-", "_") if word.startswith("--") else None


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"expected the name of a file inside the study's folder, not {path!r}")
    return path


_File = Annotated[str, AfterValidator(_inside)]


class _Part(Record):
    """A part of the file; what it does not know is a misspelt name."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Step(_Part):
    """One of our commands.

    Attributes:
        command: as in a shell, without the program's name. ``{study}`` stands for the published folder, ``{out}`` for
            the new one, ``{NAME}`` for a setting. What it writes must begin with ``{out}``.
        saves: the file in the new folder that takes the command's standard output.
        cpu_level: the level of the native kernels to force, as SELFSPEC_TUNE_CPU_LEVEL does.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    command: str
    saves: _File | None = None
    cpu_level: str | None = None

    def arguments(self) -> list[str]:
        """The command's words, an option and its value after ``=`` as two. Raises `UsageError`."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"the command of step {self.name} cannot be split into words ({error})") from error
        parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
        if not parts or parts[0] not in _COMMANDS:
            first = parts[0] if parts else "nothing"
            raise UsageError(f"step {self.name} begins with {first!r}; expected one of {', '.join(_COMMANDS)}")
        return parts

    def check(self, settings: dict[str, str]) -> None:
        """Raise `UsageError` where it runs a model's code, writes elsewhere, or names a setting that is not there."""
        words = self.arguments()
        if found := next((name for name in map(field_of, words) if name in _RUNS_CODE), None):
            raise UsageError(f"step {self.name} asks for `{found}`; a study may not run other people's code")
        for place in (place for word in words for place in PLACE.findall(word)):
            if place not in (*OWN_PLACES, *settings):
                known = ", ".join((*OWN_PLACES, *settings))
                raise UsageError(f"step {self.name} names {{{place}}}; expected one of {known}")
        outputs = [word for option, word in pairwise(words) if field_of(option) in _OUTPUTS]
        for word in outputs:
            if not re.match(r"\{out\}(/|$)", word) or ".." in PurePosixPath(word).parts:
                raise UsageError(f"step {self.name} writes to {word!r}; expected a place in {{out}}")
        if words[0] in _WRITERS and "out" not in map(field_of, words):
            raise UsageError(f"step {self.name} lacks `out`; expected one that begins with {{out}}")


class Claim(_Part):
    """What a published figure stands for.

    Attributes:
        says: the claim, a sentence.
        file: the result, by the same name in both folders.
        figure: the way to it: names of entries, indices of lists, and tables of entries by which to choose one.
        tolerance: how far a figure may be off that states no interval, as a share of it.
    """

    says: str
    file: _File
    figure: list[str | int | dict[str, Any]] = Field(min_length=1)
    tolerance: float = Field(default=0.0, ge=0, le=1)


class Plan(Document):
    """``reproduce.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    SCHEMA: ClassVar[str] = "selfspec-tune/reproduce"

    schema_name: Literal["selfspec-tune/reproduce"] = Field(default="selfspec-tune/reproduce", alias="schema")
    version: Literal[1] = 1
    about: str = ""
    settings: dict[str, str] = Field(default_factory=dict)
    steps: list[Step] = Field(alias="step", min_length=1)
    claims: list[Claim] = Field(alias="claim", min_length=1)

    @classmethod
    def of(cls, study: Path) -> Self:
        """The plan of a published study. Raises `FileFormatError`: there is none, or it is malformed."""
        file = study / PLAN_FILE
        if not study.is_dir():
            raise FileFormatError(f"{study} is no folder; expected that of a published study, such as one of studies/.")
        if not file.is_file():
            raise FileFormatError(
                f"{study} has no {PLAN_FILE}, which names a study's steps and claims, so nobody knows how to run it "
                "again. Give a study that has one, or write it: studies/README.md shows how."
            )
        return cls.load(file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read reproduce.toml. Raises `FileFormatError`."""
        return cls.from_dict(read_toml(path), origin=os.fspath(path))

    def check(self) -> None:
        """Raise `UsageError` where steps share a name, or a step is none of ours."""
        names = [step.name for step in self.steps]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two steps are named {twice}")
        if taken := next((name for name in self.settings if name in OWN_PLACES), None):
            raise UsageError(f"{taken} is a place of its own, and cannot be a setting")
        for step in self.steps:
            step.check(self.settings)

    def settings_with(self, given: dict[str, str]) -> dict[str, str]:
        """The settings with those ``given`` in their place. Raises `UsageError` for one that the study lacks."""
        if unknown := next((name for name in given if name not in self.settings), None):
            known = ", ".join(self.settings) or "none"
            raise UsageError(f"The study has no setting {unknown!r}; its settings are {known}.")
        return self.settings | given

    def chosen(self, names: tuple[str, ...]) -> Iterator[Step]:
        """The steps of these names, in the file's order; all where none is named. Raises `UsageError`."""
        known = [step.name for step in self.steps]
        if unknown := next((name for name in names if name not in known), None):
            raise UsageError(f"The study has no step {unknown!r}; its steps are {', '.join(known)}.")
        return (step for step in self.steps if not names or step.name in names)

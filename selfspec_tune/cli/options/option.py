"""One row of the table of options, and the parameter that Typer makes a parser of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from selfspec_tune.arguments import RENAMED

OF_STUDY = "the study's; without one {}"


class Panel(StrEnum):
    """Parts of a help page, in their order."""

    OPTIONS = "Options"
    MODEL = "Model"
    ANSWER = "Answer"
    PROMPTS = "Prompts"
    BUDGET = "Budget"
    DRAFT = "Draft"
    RIVALS = "Rivals"
    SWEEP = "Sweep"
    FILES = "Files"
    OTHER_RUNTIMES = "Drafts for other runtimes"
    OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or an argument, of some commands.

    Attributes:
        name: of the parameter, in the library's functions too.
        kind: type of its value, or of one where it may be repeated.
        help: what the help page says.
        commands: that have it.
        of: the dataclass of a request in which it is a field; None: the command's own business.
        metavar: what stands for its value.
        panel: where the help page has it.
        default: what is in force where it is not given, in words; None: what ``of`` has by itself. In ``differs`` a
            ``{}`` stands for that of the row.
        value: of what is not given.
        flags: how it is written, where not ``--`` and the name with dashes.
        least: smallest value.
        most: largest value.
        completes: the words that the shell offers.
        is_repeated: whether several may be given.
        is_required: whether one must be given.
        is_argument: whether it is written without a flag.
        differs: what is otherwise in some of the commands, by attribute.
    """

    name: str
    kind: Any
    help: str
    commands: Sequence[str]
    of: type[Any] | None = None
    metavar: str | None = None
    panel: Panel = Panel.OPTIONS
    default: str | None = None
    value: Any = None
    flags: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    completes: Callable[[str], list[str]] | None = None
    is_repeated: bool = False
    is_required: bool = False
    is_argument: bool = False
    differs: Mapping[str, Mapping[str, Any]] | None = None

    def of_command(self, command: str) -> Option:
        """The row as ``command`` has it."""
        other = dict((self.differs or {}).get(command, {}))
        if "default" in other:
            other["default"] = other["default"].format(self.shown_default)
        return replace(self, **other)

    @property
    def flag(self) -> str:
        """How it is written first."""
        return self.flags[0].partition("/")[0] if self.flags else f"--{self.name.replace('_', '-')}"

    @property
    def field(self) -> str:
        """Its name in ``of``."""
        renamed = RENAMED.get(self.name)
        return renamed if renamed and self.of and renamed in self.of.__dataclass_fields__ else self.name

    @property
    def unset(self) -> Any:
        """The value where it is not given; of a flag that cannot be denied, False."""
        is_flag = self.kind is bool and not any("/" in flag for flag in self.flags)
        return False if is_flag and self.value is None else self.value

    @property
    def shown_default(self) -> str | None:
        """What is in force where it is not given, in words; None where nothing is to be said."""
        if self.default is not None or self.of is None:
            return self.default
        own = self.of.__dataclass_fields__[self.field].default
        if own is MISSING or own is None or isinstance(own, bool | tuple):
            return None
        return f"{own:g}" if isinstance(own, float) else str(own)

    def parameter(self) -> inspect.Parameter:
        """What Typer makes its parser from."""
        about: dict[str, Any] = {
            "metavar": self.metavar,
            "help": self.help,
            "min": self.least,
            "max": self.most,
            "autocompletion": self.completes,
        }
        if self.value is None and self.shown_default is not None:
            about["show_default"] = self.shown_default
        if self.panel is not Panel.OPTIONS:
            about["rich_help_panel"] = self.panel.value
        info = typer.Argument(**about) if self.is_argument else typer.Option(*(self.flags or (self.flag,)), **about)
        kind: Any = list[self.kind] if self.is_repeated else self.kind  # type: ignore[name-defined]
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if self.is_required else self.unset,
            annotation=Annotated[kind if self.is_required or self.unset is not None else kind | None, info],
        )

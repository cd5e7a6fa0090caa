"""How a function becomes a command: its options are the rows of the table that name it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from selfspec_tune.cli.exits import at_edge
from selfspec_tune.cli.options import Option, options_of


class Asked(Mapping[str, Any]):
    """What a command was asked for: a value for each of its options, by name."""

    def __init__(self, options: Sequence[Option], values: Mapping[str, Any]) -> None:
        self._options = options
        self._values = {option.name: option.unset for option in options if not option.is_required} | dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def of(self, *parts: type[Any]) -> dict[str, Any]:
        """Those options that were given and are fields of these dataclasses of requests."""
        own = [(option.name, option.of) for option in self._options if option.of is not None]
        return self.given(*(name for name, of in own if any(issubclass(part, of) for part in parts)))

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the options ``names`` that were given, as plain values."""
        unset = {option.name: option.unset for option in self._options}
        values = {name: self[name] for name in names if name in unset and self[name] != unset[name]}
        return {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}


def command(name: str, *, interrupted: str = "interrupted") -> Callable[[Callable[[Asked], None]], Callable[..., None]]:
    """Makes the command ``name`` of a function of what is `Asked`; ``interrupted``: what is said after Ctrl-C.

    Typer reads its options from its signature, which the table gives.
    """
    options = options_of(name)

    def wrap(body: Callable[[Asked], None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(**values: Any) -> None:
            body(Asked(options, values))

        run.__signature__ = inspect.Signature([option.parameter() for option in options])  # type: ignore[attr-defined]
        # A line's end in the source is none of the help page, whose width is the terminal's.
        paragraphs = inspect.cleandoc(body.__doc__ or "").split("\n\n")
        run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        run.__annotations__ = {}  # of the body; Typer goes by the signature
        return at_edge(interrupted=interrupted)(run)

    return wrap

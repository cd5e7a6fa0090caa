"""The table of options: one row each, from which the signatures of commands are made."""

from __future__ import annotations

from selfspec_tune.cli.options import bench, files, generate, search, shared
from selfspec_tune.cli.options.option import Option, Panel

OPTIONS = (
    *(*shared.MODEL, *shared.PROMPTS, *shared.DRAFT),
    *(*search.OPTIONS, *bench.OPTIONS, *generate.OPTIONS, *files.OPTIONS),
    *shared.OUTPUT,
)

# By the names that messages have in backquotes.
FLAGS = {option.name: option.flag for option in OPTIONS if not option.is_argument}


def options_of(command: str) -> tuple[Option, ...]:
    """The rows of a command, as it has them, in the order of its help page."""
    own = [option.of_command(command) for option in OPTIONS if command in option.commands]
    return tuple(sorted(own, key=lambda option: list(Panel).index(option.panel)))


__all__ = ["FLAGS", "OPTIONS", "Option", "options_of"]

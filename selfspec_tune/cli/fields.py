"""How the command line writes the fields that messages name: `max_new_tokens` in backquotes is ``--max-new-tokens``."""

from __future__ import annotations

import functools
import re

_NAMED = re.compile(r"(?<!`)`([a-z][a-z0-9_]*)`(?!`)")


def with_options(text: str) -> str:
    """``text`` with each field in backquotes as the option that sets it; other words in backquotes stay."""
    return _NAMED.sub(lambda found: _flags().get(found[1], found[0]), text) if "`" in text else text


@functools.cache
def _flags() -> dict[str, str]:
    """Field to flag, of every command."""
    from typer.main import get_command

    from selfspec_tune.cli.app import app

    registered = vars(get_command(app))["commands"].values()
    flags = [flag for command in registered for option in command.params for flag in option.opts]
    return {flag[2:].replace("-", "_"): flag for flag in flags if flag.startswith("--")}

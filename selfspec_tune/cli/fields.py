"""How the command line writes the fields that messages name: `max_new_tokens` in backquotes is ``--max-new-tokens``."""

from __future__ import annotations

import re

from selfspec_tune.cli.options import FLAGS

_NAMED = re.compile(r"(?<!`)`([a-z][a-z0-9_]*)`(?!`)")


def with_options(text: str) -> str:
    """``text`` with each field in backquotes as the option that sets it; other words in backquotes stay."""
    return _NAMED.sub(lambda found: FLAGS.get(found[1], found[0]), text) if "`" in text else text

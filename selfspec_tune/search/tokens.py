"""What decides which tokens a search measures, as short hashes: the same text may come to other tokens one day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from selfspec_tune.files import short_hash
from selfspec_tune.prompts import Template


def tokens_hash(*texts: Sequence[int]) -> str:
    """Of token ids, text by text."""
    return short_hash("\n".join(" ".join(map(str, tokens)) for tokens in texts))


def vocabulary_hash(tokenizer: Any) -> str:
    """Of a tokenizer's tokens and their ids, added ones included.

    How it splits texts is told by the prompts' own tokens: how that is written down changes from version to version.
    """
    return short_hash(json.dumps(sorted((int(id_), str(token)) for token, id_ in tokenizer.get_vocab().items())))


def template_hash(tokenizer: Any, template: Template) -> str:
    """Of the chat template that prompts are rendered with, empty where they are rendered without one."""
    used = None if template is Template.RAW else tokenizer.chat_template
    return short_hash(json.dumps(used, sort_keys=True)) if used else ""

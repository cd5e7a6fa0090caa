"""Who drafts the tokens of a round."""

from __future__ import annotations

from enum import StrEnum


class Source(StrEnum):
    """Where the drafted tokens of a round come from; a plain round has none."""

    PLAIN = "plain"
    NGRAM = "ngram"
    MODEL = "model"

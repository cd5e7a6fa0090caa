"""One prompt, and the hash by which files refer to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request to the model, before any chat template.

    ``id`` says where it came from (``builtin/code-03``), ``task`` what kind it is
    (splits and draws keep the mix of tasks), ``text`` is what a user would type.
    """

    id: str
    task: str
    text: str

    @property
    def hash(self) -> str:
        """First 16 hex digits of the text's SHA-256: the same text, the same hash, whatever its id."""
        return hashlib.sha256(self.text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def unique(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts without repeated texts; the first of each is kept, in order."""
    first_of: dict[str, Prompt] = {}
    for prompt in prompts:
        first_of.setdefault(prompt.hash, prompt)
    return list(first_of.values())

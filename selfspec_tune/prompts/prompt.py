"""One prompt, and the hash by which files refer to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

Turn = tuple[str, str]  # a role (system, user or assistant) and what it says


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request to the model, before any chat template.

    ``id`` says where it came from (``builtin/code-03``), ``task`` what kind it is
    (splits and draws keep the mix of tasks), ``text`` is what a user would type.
    ``history``: of a conversation, the turns before ``text``; None where the prompt is a text alone.
    """

    id: str
    task: str
    text: str
    history: tuple[Turn, ...] | None = None

    @property
    def hash(self) -> str:
        """First 16 hex digits of the text's SHA-256: the same text after the same turns, the same hash."""
        said = json.dumps([*self.history, self.text], ensure_ascii=False) if self.history else self.text
        return hashlib.sha256(said.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]

    @property
    def messages(self) -> list[dict[str, str]]:
        """All turns as chat templates take them, the user's ``text`` last."""
        return [{"role": role, "content": said} for role, said in (*(self.history or ()), ("user", self.text))]


def unique(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts without repeated texts; the first of each is kept, in order."""
    first_of: dict[str, Prompt] = {}
    for prompt in prompts:
        first_of.setdefault(prompt.hash, prompt)
    return list(first_of.values())


def with_own_ids(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts, ids that an earlier one has made its own: ``set/7``, ``set/7~2``, …"""
    seen: dict[str, int] = {}
    found = []
    for prompt in prompts:
        name = prompt.id
        while name in seen:
            seen[prompt.id] += 1
            name = f"{prompt.id}~{seen[prompt.id]}"
        seen[name] = 1
        found.append(replace(prompt, id=name))
    return found

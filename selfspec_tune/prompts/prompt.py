"""A prompt, the hash by which files refer to it, and what of a data set's conversation is one.

``[{"role": …, "content": …}, …]`` (content a text or a list of parts) and ShareGPT's
``[{"from": …, "value": …}, …]``. The prompt ends with the last user turn: the answers after it are dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from selfspec_tune.checks import shown
from selfspec_tune.errors import PromptError
from selfspec_tune.files import short_hash

Turn = tuple[str, str]  # a role (system, user or assistant) and what it says
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_ADVICE = "Leave such conversations out."
_TEXT_PARTS = (None, "text", "input_text")


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


def tokens_hash(*texts: Sequence[int]) -> str:
    """Of the token ids that prompts became, text by text."""
    return short_hash("\n".join(" ".join(map(str, tokens)) for tokens in texts))


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


def is_conversation(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list of turns: objects, of which the first says whose turn it is."""
    return is_list(value) and bool(value) and isinstance(value[0], Mapping) and _key(value[0], _ROLE_KEYS) is not None


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list of some kind, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def read_conversation(turns: Sequence[Any], *, where: str, advice: str = _ADVICE) -> list[Turn]:
    """The turns up to the user's last, which comes last; none where no user speaks.

    Raises `PromptError` with ``where`` and ``advice`` for what is no turn, for roles such as tools', and for parts that
    are no text.
    """
    roles = [_role(turn, where, advice) for turn in turns]
    while roles and roles[-1] == "assistant":
        roles.pop()
    if "user" not in roles:
        return []
    if roles[-1] != "user":
        raise PromptError(f"{where}: the conversation ends with a turn of {roles[-1]}; expected one of the user.")
    asked = turns[: len(roles)]
    return [(role, _content(turn, where, advice)) for role, turn in zip(roles, asked, strict=True)]


def _role(turn: object, where: str, advice: str) -> str:
    key = _key(turn, _ROLE_KEYS) if isinstance(turn, Mapping) else None
    if not isinstance(turn, Mapping) or key is None:
        raise PromptError(f'{where}: a turn is {shown(turn)}; expected {{"role": …, "content": …}} or from and value.')
    role = _ROLES.get(str(turn[key]).lower())
    if role is None:
        raise PromptError(
            f"{where}: a turn is of {turn[key]!r}; expected system, user or assistant (or human, gpt). {advice}"
        )
    return role


def _content(turn: Mapping[str, Any], where: str, advice: str) -> str:
    if turn.get("tool_calls"):
        raise PromptError(f"{where}: a turn calls tools, which is not rendered. {advice}")
    key = _key(turn, _CONTENT_KEYS)
    content = turn[key] if key else None
    parts = content if is_list(content) else [content]
    return "\n".join(_part(part, where, advice) for part in parts)


def _part(part: object, where: str, advice: str) -> str:
    kind = None
    if isinstance(part, Mapping):
        kind, part = part.get("type"), part.get("text")
    if kind not in _TEXT_PARTS or not isinstance(part, str):
        what = f"a part of type {kind!r}" if kind not in _TEXT_PARTS else f"{shown(part)} in the place of a text"
        raise PromptError(f"{where}: a turn holds {what}; only text can be rendered. {advice}")
    return part


def _key(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of ``keys`` that the turn has a value for."""
    return next((key for key in keys if turn.get(key) is not None), None)

"""``study.toml``: what a search was asked for."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal, Self

import tomli_w
from pydantic import Field

from selfspec_tune import files
from selfspec_tune.errors import UsageError
from selfspec_tune.results.record import Document, Path


class StudyConfig(Document):
    """``study.toml``: the resolved configuration of a search, what a resumed one must match.

    Fields that are None are left out of the file. Any further plain field is kept. ``start_from``:
    what the search began from, by name, and a hash of what was read there. ``prompt_tokens``, ``tokenizer`` and
    ``chat_template`` are hashes, the last one empty where prompts are rendered without a template; files of before
    have none of these, nor ``eos_token_ids``. ``draft_defaults``: what no option says of drafts, in words; older ones
    do not state it. ``model_revision``: the commit on the hub; ``template_date``: what chat
    templates printed as today's.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/study"

    schema_name: Literal["selfspec-tune/study"] = Field(default="selfspec-tune/study", alias="schema")
    version: Literal[1] = 1
    model: str
    model_fingerprint: str
    dtype: str
    device: str
    prompts: str = "builtin"
    prompts_hash: str = ""
    num_prompts: int | None = None
    template: str = "auto"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    trials: int | None = None
    timeout_seconds: float | None = None
    seed: int = 0
    runner: str = "fast"
    draft: dict[str, Any] = {}
    strategy: str = "staged"
    start_from: dict[str, str] | None = None
    tasks: list[str] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    eos_token_ids: list[int] | None = None
    prompt_tokens: str | None = None
    model_revision: str | None = None
    template_date: str | None = None
    draft_defaults: str | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read study.toml. Raises `FileFormatError`: missing, corrupt, other schema, newer version."""
        return cls.from_dict(files.read_toml(path), origin=os.fspath(path))

    def save(self, path: Path) -> None:
        """Write study.toml atomically. Raises `StorageError`, and `UsageError` for a path whose bytes are no text."""
        plain = {key: value for key, value in self.to_dict().items() if value is not None}
        text = tomli_w.dumps(plain)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{os.fspath(path)} cannot hold the name of a file or folder that is no UTF-8 text. Rename it."
            ) from error
        files.write_atomic(path, text)

    def differences(self, other: StudyConfig) -> dict[str, tuple[Any, Any]]:
        """Fields whose values differ, each with ours and the other's."""
        ours, theirs = self.to_dict(), other.to_dict()
        pairs = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

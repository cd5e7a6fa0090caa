from __future__ import annotations

import pytest

from selfspec_tune.checks import wide_encoding

TEXTS = ("prompt\nSing.\n", "Où ?", "prompt\n日本語の文章です。\n", "A", "Привет, мир\n" * 900)
IDS = ("latin", "accents", "japanese", "one", "russian")


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_wide_characters_are_told_by_where_their_nul_bytes_stand(text: str, encoding: str) -> None:
    assert wide_encoding(text.encode(encoding)) == encoding


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_other_text_is_none(text: str) -> None:
    assert wide_encoding(text.encode()) is None
    assert wide_encoding(text.encode("cp1251", "replace")) is None


@pytest.mark.parametrize("data", [b"", b"a\0b", b"a long line\0\n" * 3, bytes(range(256)) * 4, b"\0", b"\0\0"])
def test_other_bytes_are_none(data: bytes) -> None:
    assert wide_encoding(data) is None

"""GGUF files with damaged headers: loaded, or refused by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.export.formats.gguf_file import GgufFile
from selfspec_tune.models import load_model
from tests import kit
from tests.fuzz_kit import A_FEW, damaged, folder, may_be_refused, write

_HEADER_BYTES = 4096


@cache
def _content() -> bytes:
    with folder() as place:
        model = kit.tiny_llama(Path(place) / "model", layers=1, vocab=64)
        return kit.tiny_gguf(model, Path(place) / "tiny.gguf").read_bytes()


def _damaged_header(data: st.DataObject) -> bytes:
    whole = _content()
    header = data.draw(damaged(whole[:_HEADER_BYTES]))
    return header + whole[_HEADER_BYTES:] if data.draw(st.booleans()) else header


@A_FEW
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        file = write(Path(place) / "tiny.gguf", _damaged_header(data))
        may_be_refused(lambda: GgufFile(file), "tiny.gguf")


@pytest.mark.long
@A_FEW
@given(data=st.data())
def test_a_model_with_a_damaged_header_is_loaded_or_refused(data: st.DataObject) -> None:
    with folder() as place:
        file = write(Path(place) / "tiny.gguf", _damaged_header(data))
        may_be_refused(lambda: load_model(str(file), device="cpu"), "tiny.gguf")

"""Whatever a prompt file holds, it is read or refused by a `PromptError`; nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import load_prompts

CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Sing.", "[", "NA"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "type", "text", "messages"]), inner, max_size=3
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool", 3]), "content": inner})
    ),
    max_leaves=6,
)
COLUMNS = (
    "prompt",
    "text",
    "instruction",
    "input",
    "output",
    "question",
    "context",
    "messages",
    "system",
    "id",
    "task",
)
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=4) | CELLS, max_size=4)
SHEETS = st.text(st.sampled_from('ab,;\t|"\r\n \ufeff\0'), max_size=40).map(lambda text: "prompt;id,x\n" + text)
CONTENTS = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=64).map(lambda text: text.encode("utf-8", "surrogatepass")),
    SHEETS.map(str.encode),
    ROWS.map(lambda rows: json.dumps(rows).encode()),
    ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.sampled_from([b"\x1f\x8b", b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1"]).flatmap(
        lambda mark: st.binary(max_size=32).map(lambda rest: mark + rest)
    ),
)


@settings(deadline=None, max_examples=100)
@given(content=CONTENTS, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".txt.gz"]))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = folder_of_the_session(tmp_path_factory) / f"set{suffix}"
    path.write_bytes(content)
    notices: list[str] = []
    try:
        prompts = load_prompts(str(path), notice=notices.append)
    except PromptError:
        return
    assert prompts
    assert len({prompt.id for prompt in prompts}) == len({prompt.hash for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text.strip()
        json.dumps([prompt.id, prompt.task, prompt.messages], ensure_ascii=False).encode()


def folder_of_the_session(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    return folder

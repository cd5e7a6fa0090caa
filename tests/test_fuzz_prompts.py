"""Prompt files of any content, damaged ones, and names that mean something elsewhere: read, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.prompts import Prompt, load_prompts
from tests.fuzz_kit import A_FEW, damaged, folder, may_be_refused, write

_ROWS = [
    {"id": "1", "task": "code", "prompt": "Write a poem.", "n": 1},
    {"id": "2", "task": "chat", "prompt": "Add 1, 2; and\t3.", "n": 2},
]
_CHATS = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
_FILES = {
    "set.jsonl": _LINES,
    "set.json": json.dumps(_ROWS).encode(),
    "chat.jsonl": json.dumps(_CHATS[0]).encode() + b"\n",
    "set.csv": b'id,task,prompt\n1,code,"Write, please."\n2,chat,Sing.\n',
    "set.tsv": b"id\ttask\tprompt\n1\tcode\tWrite.\n2\tchat\tSing.\n",
    "pretty.txt": json.dumps(_ROWS, indent=1).encode(),
    "columns.json": json.dumps({"prompt": [row["prompt"] for row in _ROWS], "n": [1, 2]}).encode(),
    "set.txt": "Write a poem.\nAdd 1 and 2.\nÜbersetze „ja“.\n".encode(),
}
_CELLS = st.recursive(
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
_COLUMNS = (
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
_ANY_ROWS = st.lists(st.dictionaries(st.sampled_from(_COLUMNS), _CELLS, max_size=4) | _CELLS, max_size=4)
_SHEETS = st.text(st.sampled_from('ab,;\t|"\r\n \ufeff\0'), max_size=40).map(lambda text: "prompt;id,x\n" + text)
_MADE_UP = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=64).map(lambda text: text.encode("utf-8", "surrogatepass")),
    _SHEETS.map(str.encode),
    _ANY_ROWS.map(lambda rows: json.dumps(rows).encode()),
    _ANY_ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.sampled_from([b"\x1f\x8b", b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1"]).flatmap(
        lambda mark: st.binary(max_size=32).map(lambda rest: mark + rest)
    ),
)
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".txt.gz")
_DECOY = "this is another file"
_PARTS = ("set", "[1]", "*", "?", "{a,b}", "#", "%20", " ", "'", "é", "-", ".", "!", "$HOME", "::", "@", "~", "\n")


def _no_decoy(prompts: tuple[Prompt, ...]) -> None:
    assert not [prompt for prompt in prompts if _DECOY in prompt.text], "another file was read"


def _check(prompts: tuple[Prompt, ...]) -> None:
    assert prompts
    assert len({prompt.id for prompt in prompts}) == len({prompt.hash for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text.strip()
        json.dumps([prompt.id, prompt.task, prompt.messages], ensure_ascii=False).encode()


@settings(A_FEW, max_examples=4 * A_FEW.max_examples)
@given(content=_MADE_UP, suffix=st.sampled_from(_SUFFIXES))
def test_any_file_is_read_or_refused(content: bytes, suffix: str) -> None:
    notices: list[str] = []
    with folder() as place:
        file = write(Path(place) / f"set{suffix}", content)
        may_be_refused(lambda: _check(load_prompts(str(file), notice=notices.append)), f"set{suffix}")
    for notice in notices:
        notice.encode()


@A_FEW
@given(data=st.data())
def test_a_damaged_prompt_file_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_FILES)))
    with folder() as place:
        file = write(Path(place) / name, data.draw(damaged(_FILES[name])))
        may_be_refused(lambda: _check(load_prompts(str(file))), name)


@A_FEW
@given(parts=st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4), kind=st.sampled_from(sorted(_FILES)))
def test_a_file_of_any_name_is_that_file(parts: list[str], kind: str) -> None:
    suffix = Path(kind).suffix
    with folder() as place:
        for decoy in ("set", "set1", "seta", "setb", "1", "a"):
            write(Path(place) / f"{decoy}{suffix}", _FILES[kind].replace(b"Write", _DECOY.encode()))
        file = write(Path(place) / f"{''.join(parts)}{suffix}", _FILES[kind])
        may_be_refused(lambda: _no_decoy(load_prompts(str(file))))

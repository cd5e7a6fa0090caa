"""Damaged prompt files and names that mean something to a shell or a library: read, or refused, and no other file."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
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
    "set.txt": "Write a poem.\nAdd 1 and 2.\nÜbersetze „ja“.\n".encode(),
}
_DECOY = "this is another file"
_PARTS = ("set", "[1]", "*", "?", "{a,b}", "#", "%20", " ", "'", "é", "-", ".", "!", "$HOME", "::", "@", "~", "\n")


def _no_decoy(prompts: tuple[Prompt, ...]) -> None:
    assert not [prompt for prompt in prompts if _DECOY in prompt.text], "another file was read"


@A_FEW
@given(data=st.data())
def test_a_damaged_prompt_file_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_FILES)))
    with folder() as place:
        file = write(Path(place) / name, data.draw(damaged(_FILES[name])))
        may_be_refused(lambda: load_prompts(str(file)), name)


@A_FEW
@given(parts=st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4), kind=st.sampled_from(sorted(_FILES)))
def test_a_file_of_any_name_is_that_file(parts: list[str], kind: str) -> None:
    suffix = Path(kind).suffix
    with folder() as place:
        for decoy in ("set", "set1", "seta", "setb", "1", "a"):
            write(Path(place) / f"{decoy}{suffix}", _FILES[kind].replace(b"Write", _DECOY.encode()))
        file = write(Path(place) / f"{''.join(parts)}{suffix}", _FILES[kind])
        may_be_refused(lambda: _no_decoy(load_prompts(str(file))))

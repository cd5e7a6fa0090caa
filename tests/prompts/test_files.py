"""Prompt files as people have them: any encoding, separator, shape of JSON, packing, folder and name."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from pathlib import Path

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import load_prompts


def texts(path: Path | str) -> list[str]:
    return [prompt.text for prompt in load_prompts(str(path))]


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Separators


@pytest.mark.parametrize("name", ["P.TSV", "p.tsv", "P.CSV", "p.csv", "p.csv.gz"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_by_content_whatever_the_suffix_says(tmp_path: Path, name: str, separator: str) -> None:
    rows = [["id", "prompt"], ["1", '"Write, a; poem\t|"'], ["2", "Sing"]]
    path = written(tmp_path / name, "".join(separator.join(row) + "\r\n" for row in rows))
    assert texts(path) == ["Write, a; poem\t|", "Sing"]


def test_a_separator_that_only_some_rows_bear_is_not_taken_for_the_files(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "prompt;note, if any\nOne, two, three;a\nFour;b\n")
    assert texts(path) == ["One, two, three", "Four"]


def test_several_separators_that_fit_as_well_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "prompt;a|b\nOne;c|d\n")
    with pytest.raises(PromptError, match="may be separated by semicolons or vertical bars"):
        load_prompts(str(path))


def test_the_separator_that_a_spreadsheet_states_is_taken(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "p.csv", "sep=;\r\nid;prompt\r\n1;One, two\r\n")) == ["One, two"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("id,prompt\n1,Sing\n2,Write,a poem\n", 3),
        ("id,prompt\n1,Sing,\n", 2),
        ("prompt\nName a river, and a sea.\n", 2),
        ('id,prompt\n1,"two\nlines"\n\n2,Write,a poem\n', 5),
        ("id,prompt,task\n1,Write a\npoem,chat\n", 2),
    ],
)
def test_a_row_with_more_or_fewer_fields_than_the_header_is_named_by_its_line(
    tmp_path: Path, content: str, line: int
) -> None:
    with pytest.raises(PromptError, match=rf"p\.csv, line {line}: expected \d field.*found \d"):
        load_prompts(str(written(tmp_path / "p.csv", content)))


@pytest.mark.parametrize("content", ['id,prompt\n1,"Sing\n2,Write\n', 'id,prompt\n1,"Sing" it\n'])
def test_quotes_that_do_not_match_are_named_by_their_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(PromptError, match=r"p\.csv, line 2: .*double quote"):
        load_prompts(str(written(tmp_path / "p.csv", content)))


def test_a_table_without_a_header_loses_no_prompt(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "Write a poem\nName a river\n")
    with pytest.raises(PromptError, match=r"only column is called 'Write a poem'.*Add a header line"):
        load_prompts(str(path))
    assert texts(f"{path}#Write a poem") == ["Name a river"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="several columns 'prompt'"):
        load_prompts(str(written(tmp_path / "p.csv", "prompt,prompt\na,b\n")))


def test_columns_are_found_in_capitals_and_a_long_field_is_read(tmp_path: Path) -> None:
    (prompt,) = load_prompts(str(written(tmp_path / "p.csv", f"Prompt, Task\n{'long ' * 60_000},qa\n")))
    assert (len(prompt.text), prompt.task) == (300_000, "qa")


# What the suffix does not say


@pytest.mark.parametrize(
    "content",
    [
        '[\n  {\n    "prompt": "One"\n  },\n  {\n    "prompt": "Two"\n  }\n]\n',
        '[{"id": 1, "prompt": "One"}, {"id": 2, "prompt": "Two"}]',
        '[\n "One",\n "Two"\n]',
        '{\n "prompts": [\n  "One",\n  "Two"\n ]\n}',
        '{"prompt": "One"}\n\n{"prompt": "Two"}\n',
        "id,prompt\r\n1,One\r\n2,Two\r\n",
        '"Prompt";"Task"\n"One";qa\n"Two";"qa"\n',
    ],
)
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.tsv", "p.txt.gz"])
def test_rows_are_read_by_their_content_whatever_the_suffix_says(tmp_path: Path, name: str, content: str) -> None:
    assert texts(written(tmp_path / name, content)) == ["One", "Two"]


@pytest.mark.parametrize(
    "content", ['"One"\n"Two"\n', "id\tprompt\n1\tOne\n2\tTwo\n", "sep=;\nid;prompt\n1;One\n2;Two\n"]
)
def test_lines_of_text_that_are_rows_are_read_as_such(tmp_path: Path, content: str) -> None:
    assert texts(written(tmp_path / "p.txt", content)) == ["One", "Two"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.json"])
def test_parquet_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    import pandas as pd

    pd.DataFrame({"prompt": ["One", "Two"]}).to_parquet(tmp_path / name)
    assert texts(tmp_path / name) == ["One", "Two"]


@pytest.mark.parametrize(
    ("content", "separator"),
    [
        ("n\tbody\n1\tSing\n2\tHum\n", "tabs"),
        ("1\tSing\n2\tHum\n", "tabs"),
        ('n\tbody\n1\t"Sing" it\n2\tHum\n', "tabs"),
        ("n\tbody\n1\tSing\n2\tHum\tit\n", "tabs"),
        ("n,body\n1,Sing\n2,Hum\n", "commas"),
        ("n,title,body\n1,A,Sing\n", "commas"),
        ("id, body\n1, Sing\n2, Hum\n", "commas"),
        ("n;body text\n1;Sing\n2;Hum\n", "semicolons"),
        ("n | body\n1 | Sing\n2 | Hum\n", "vertical bars"),
    ],
)
def test_lines_that_may_be_a_table_are_refused_where_no_column_is_known(
    tmp_path: Path, content: str, separator: str
) -> None:
    path = written(tmp_path / "p.txt", content)
    with pytest.raises(
        PromptError, match=rf"p\.txt may be a table, separated by {separator}.*p\.txt#COLUMN.*JSON lines"
    ):
        load_prompts(str(path))


def test_the_column_of_a_table_in_a_text_file_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "p.txt", "n,body\n1,Sing\n2,Hum\n")
    assert texts(f"{path}#body") == ["Sing", "Hum"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"prompt": "One"},\n {"prompt": ', "cannot be read as json: Expecting value at line 3"),
        ('[{"prompt": "One"}, {"prompt": "Tw', "cannot be read as json: Unterminated string"),
        ('{"prompt": "One"}\n{"prompt": "Two"\n{"prompt": "Three"}\n', "line 2 cannot be read as json"),
        ("[{'prompt': 'One'}, {'prompt': 'Two'}]", "cannot be read as json: Expecting property name"),
        ("['One', 'Two']", "cannot be read as json: Expecting value"),
        ('{\n "prompt": "One"\n}\n{\n "prompt": "Two"\n}\n', "cannot be read as json: Extra data at line 4"),
        ('{"prompt": "One"},\n{"prompt": "Two"},\n', "cannot be read as json: Extra data"),
        ('{"prompt": "One"}{"prompt": "Two"}\n', "cannot be read as json: Extra data"),
        ('"One",\n"Two, three",\n"Four"\n', "cannot be read as json: Extra data"),
        ("| id | prompt |\n|---|---|\n| 1 | Sing |\n", "table as Markdown has it"),
        ("id | prompt\n--- | ---\n1 | Sing\n", "table as Markdown has it"),
        (" id | prompt\n----+-------\n  1 | Sing\n", "table as Markdown has it"),
        ("id,prompt\n1,Write, a poem\n2,Sing\n", "line 2: expected 2 fields"),
        ("prompt\nSing, hum\nHum\n", r"begins with the line prompt, the name of a column.*suffix \.csv"),
    ],
)
def test_what_began_as_rows_and_is_damaged_is_not_taken_for_lines_of_text(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(PromptError, match=rf"p\.txt.*{message}"):
        load_prompts(str(written(tmp_path / "p.txt", content)))


@pytest.mark.parametrize(
    "lines",
    [
        ["[INST] Sing [/INST]", "[INST] Hum [/INST]"],
        ['{"a": 1} Convert this to YAML.', "Sing"],
        ['["a", "b"], sorted?', '"Sing", he said,', "and hummed"],
        ["{{user}} says hello", "{name}, sing"],
        ["[ ] buy milk", "[x] sing"],
        ["Please, sing", "Please, hum"],
        ["Sing; then hum", "Hum, then sing"],
        ["Sing a song; then hum", "Write a poem; then read"],
        ["\tint x = 1;", "\treturn x;"],
        ["\tif (x)", "\t\treturn x;"],
        ["Text, please", "Sing, hum, or both"],
        ["Who wrote this: a | b | c?", "Sing"],
        ['"To be" or not', '"Sing"'],
        ["42", "null", "true"],
        ["Here is a file:", '{"prompt": "Sing"}', "Hum"],
        ["Here is a file:", "id\tprompt", "1\tSing"],
        ["one,two,three"],
    ],
    ids=lambda lines: lines[0],
)
def test_lines_of_text_stay_prompts(tmp_path: Path, lines: list[str]) -> None:
    assert texts(written(tmp_path / "p.txt", "\n".join(lines))) == lines


# Encodings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "Où ?\r\nÇa ?\r\n"),
        ("p.jsonl", '{"prompt": "Où ?"}\r\n{"prompt": "Ça ?"}\r\n'),
        ("p.json", '[{"prompt": "Où ?"},\r\n {"prompt": "Ça ?"}]'),
        ("p.csv", "prompt;id\r\nOù ?;1\r\nÇa ?;2\r\n"),
    ],
)
def test_unicode_is_read_with_and_without_a_byte_order_mark(
    tmp_path: Path, mark: bytes, encoding: str, name: str, content: str
) -> None:
    assert texts(written(tmp_path / name, mark + content.encode(encoding))) == ["Où ?", "Ça ?"]


def test_a_mark_within_files_that_were_joined_is_no_text(tmp_path: Path) -> None:
    one = '\ufeff{"prompt": "One"}\n'
    assert texts(written(tmp_path / "p.jsonl", one + one.replace("One", "Two"))) == ["One", "Two"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
def test_other_bytes_are_refused_with_their_place_and_how_to_convert(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "prompt\ncafé\n".encode("latin-1"))
    with pytest.raises(PromptError, match=r"byte 0xe9 at offset 10, in line 2.*iconv -f WINDOWS-1252 -t UTF-8"):
        load_prompts(str(path))


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
@pytest.mark.parametrize("text", ["prompt\nOne\n", "prompt\nÇa, où ?\n"])
def test_utf_16_without_its_mark_is_refused_with_what_converts_it(
    tmp_path: Path, encoding: str, name: str, text: str
) -> None:
    path = written(tmp_path / name, text.encode(encoding))
    with pytest.raises(
        PromptError, match=rf"it is {encoding} without a byte-order mark.*`iconv -f {encoding} -t UTF-8"
    ):
        load_prompts(str(path))


@pytest.mark.parametrize(
    "content", [b"Sing a very long song\0\n", b"caf\xe9 noir, very long\0\n", b"\xef\xbb\xbfSing\0"]
)
def test_nul_bytes_of_no_encoding_are_no_text(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PromptError, match=r"holds NUL .*is no text, or damaged"):
        load_prompts(str(written(tmp_path / "p.txt", content)))


def test_only_line_ends_end_lines(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "p.txt", "One\x0b\x85two\u2028three\rFour\r\nFive")) == [
        "One\x0b\x85two\u2028three",
        "Four",
        "Five",
    ]


def test_half_a_character_is_refused_by_its_row(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '{"prompt": "a \\ud83d\\ude00"}\n{"prompt": "b \\ud83d"}\n')
    with pytest.raises(PromptError, match="row 2 holds half of a character"):
        load_prompts(str(path))


# Shapes of JSON


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "One"}\n\n{"prompt": "Two"}\n',
        '[{"prompt": "One"}, {"prompt": "Two"}]',
        '[\n {"prompt": "One"},\n {"prompt": "Two"}\n]\n',
        '{"version": 1, "data": [{"prompt": "One"}, {"prompt": "Two"}]}',
        '"One"\n"Two"\n',
        '["One", "Two"]',
        '{"prompts": ["One", "Two"]}',
        '{"id": 1, "prompt": "One", "tags": ["x"]}\n{"id": 2, "prompt": "Two"}\n',
        '{"prompt": ["One", "Two"]}',
        '{"Question": ["One", "Two"], "id": [1, 2], "task": "qa"}',
        '{"instruction": ["One", "Two"], "output": ["1", "2"]}',
        '{"prompt": [[{"role": "user", "content": "One"}], [{"role": "user", "content": "Two"}]]}',
        '{"messages": [[{"role": "user", "content": "One"}], [{"role": "user", "content": "Two"}]]}',
        '{"train": ["One", "Two"]}',
        '{"train": [{"prompt": "One"}, {"prompt": "Two"}]}',
        '{"Prompts": [{"prompt": "One"}, {"prompt": "Two"}]}',
        '{"prompts": ["One", "Two"], "answers": ["1", "2", "3"]}',
    ],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.ndjson"])
def test_json_is_read_by_its_shape_whatever_the_suffix_says(tmp_path: Path, name: str, content: str) -> None:
    assert texts(written(tmp_path / name, content)) == ["One", "Two"]


def test_columns_of_one_object_keep_their_rows_together(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", '{"body": ["One", "Two"], "id": ["a", "b"], "category": ["qa", "chat"]}')
    prompts = load_prompts(f"{path}#body")
    assert [(prompt.id, prompt.task, prompt.text) for prompt in prompts] == [
        ("p/a", "qa", "One"),
        ("p/b", "chat", "Two"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "1"}]}',
        '{"data": [{"role": "user", "content": "One"}]}',
        '{"turns": ["One", "Two"]}',
        '{"prompt": ["One"]}',
        '{"prompt": "One", "tags": ["x", "y"]}',
        '{"question": "One", "choices": ["A", "B", "C"]}',
    ],
)
def test_one_row_stays_one_prompt(tmp_path: Path, content: str) -> None:
    assert texts(written(tmp_path / "p.json", content)) == ["One"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": ["One", "Two"], "id": [1]}', r"lists differ in length \(prompt 2, id 1\)"),
        ('{"prompts": ["One"], "items": ["Two"]}', r"several keys could hold the prompts \(prompts, items\)"),
        ('{"prompt": ["One", "Two"]}\n{"prompt": ["Three", "Four"]}', "row 1: prompt holds several texts"),
        ('[{"prompt": ["One", "Two"]}]', "row 1: prompt holds several texts .*call the column turns"),
        ('{"conversation": ["Hi", "Hello", "Who?"]}', "row 1: conversation holds several texts"),
        ('{"prompt": {"0": "One", "1": "Two"}}', "row 1: prompt holds {'0': 'One'"),
    ],
)
def test_several_texts_are_never_one_prompt(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(PromptError, match=rf"p\.json.*{message}"):
        load_prompts(str(written(tmp_path / "p.json", content)))


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_turns_of_a_table_are_read_as_turns(tmp_path: Path, name: str) -> None:
    import pandas as pd

    path, turns = tmp_path / name, ["One", "Two"]
    if name == "p.csv":
        pd.DataFrame({"turns": [json.dumps(turns)], "id": [1]}).to_csv(path, index=False)
    else:
        pd.DataFrame({"turns": [turns]}).to_parquet(path)
    assert texts(path) == ["One"]


def test_a_column_that_the_first_row_lacks_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '{"id": 1}\n{"id": 2, "prompt": "Two", "task": "qa"}\n')
    (prompt,) = load_prompts(str(path))
    assert (prompt.id, prompt.task) == ("p/2", "qa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "One"}\n{"prompt": "Two"\n', r"p\.jsonl, line 2 cannot be read as json"),
        ('{"prompt": "One"}\n7\n', r"row 2 is 7; expected an object"),
        ('{"prompt": {"0": "One"}}\n', r"row 1: prompt holds \{'0': 'One'\}; expected a text"),
        ('{"prompt": [["One"]]}\n', r"row 1: prompt holds \['One'\]"),
        ("[" * 100_000, r"cannot be read as json: .*recursion"),
        ('{"n": ' + "9" * 5000 + "}", r"cannot be read as json: Exceeds the limit"),
    ],
)
def test_json_that_is_no_list_of_prompts_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        load_prompts(str(written(tmp_path / "p.jsonl", content)))


def test_two_rows_of_one_id_keep_apart(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": text} for text in ("One", "Two", "Three")]
    path = written(tmp_path / "p.json", json.dumps(rows))
    assert [prompt.id for prompt in load_prompts(str(path))] == ["p/a", "p/a~2", "p/a~3"]


# Names


@pytest.mark.parametrize(
    "name",
    [
        "prompts[1].jsonl",
        "prompts?.jsonl",
        "prompts*.jsonl",
        "{prompts1}.jsonl",
        "a b.jsonl",
        "a#b.jsonl",
        "a@b.jsonl",
        "a::b.jsonl",
        "file:/b.jsonl",
        "100%20.jsonl",
        "~x.jsonl",
        "$HOME.jsonl",
        "gsm8k:x.jsonl",
        "x=1/y.jsonl",
        "a\nb.jsonl",
        os.fsdecode(b"caf\xe9.jsonl"),
    ],
)
def test_exactly_the_file_of_that_name_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("prompts1.jsonl", "a", "b.jsonl", "x.jsonl", "100 .jsonl"):
        written(Path(other), '{"prompt": "another file\'s"}\n')
    with pytest.raises(PromptError):
        load_prompts(name)
    written(Path(name), '{"prompt": "mine", "label": "chosen"}\n')
    for source in (name, str(tmp_path / name), f"./{name}"):
        (prompt,) = load_prompts(source)
        assert prompt.text == "mine"
        assert prompt.id.encode().startswith(Path(name).name.split(".")[0].encode(errors="backslashreplace"))
    assert texts(f"{name}#label") == ["chosen"]


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "a\0b.jsonl", "~nosuchuser/x.jsonl", "/dev/null/x.jsonl"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(PromptError, match="There is no file"):
        load_prompts(name)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(PromptError, match="no regular file"):
        load_prompts(str(tmp_path / "p.jsonl"))


# Packed files and folders


def test_a_gzipped_file_is_known_by_its_content(tmp_path: Path) -> None:
    packed = gzip.compress(b"One\nTwo\n")
    assert texts(written(tmp_path / "a.txt.GZ", packed)) == ["One", "Two"]
    assert texts(written(tmp_path / "b.txt", packed)) == ["One", "Two"]
    assert texts(written(tmp_path / "c.txt.gz", "One\nTwo\n")) == ["One", "Two"]
    with pytest.raises(PromptError, match=r"d\.txt\.gz cannot be read"):
        load_prompts(str(written(tmp_path / "d.txt.gz", packed[:-6])))


@pytest.mark.parametrize(
    ("name", "command"),
    [("p.jsonl.zst", "zstd -d"), ("p.zip", "unzip"), ("p.csv.ZIP", "unzip"), ("p.csv.bz2", "bunzip2")],
)
def test_other_packed_files_are_refused_with_what_unpacks_them(tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(PromptError, match=f"is packed .*`{command}"):
        load_prompts(str(written(tmp_path / name, b"PK\x03\x04")))


def test_a_folder_of_files_is_read_by_name(tmp_path: Path) -> None:
    written(tmp_path / "set" / "b.jsonl", '{"question": "Two"}\n')
    written(tmp_path / "set" / "a.jsonl.gz", gzip.compress(b'{"prompt": "One"}\n{"prompt": "Two"}\n'))
    written(tmp_path / "set" / "README.md", "No prompts.")
    written(tmp_path / "set" / ".c.txt", "Hidden.")
    written(tmp_path / "set" / "deeper" / "d.jsonl", '{"prompt": "Not read"}\n')
    notices: list[str] = []
    prompts = load_prompts(str(tmp_path / "set"), notice=notices.append)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("a/0", "One"), ("a/1", "Two")]
    assert notices[-1].endswith("set: not read of this folder: README.md, deeper/")


def test_a_folder_without_prompt_files_or_with_several_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="is a folder and holds no prompt files"):
        load_prompts(str(tmp_path))
    written(tmp_path / "a.txt", "One\n")
    written(tmp_path / "a.jsonl", '{"prompt": "One"}\n')
    with pytest.raises(PromptError, match=r"files of several kinds \(json, text\)"):
        load_prompts(str(tmp_path))


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", "p.json", "p.parquet", "p.txt.gz"])
def test_an_empty_file_holds_no_prompts(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match="holds no prompts"):
        load_prompts(str(written(tmp_path / name, b"")))


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read as parquet"):
        load_prompts(str(written(tmp_path / "p.parquet", b"PAR1 no more")))

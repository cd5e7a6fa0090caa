from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune import files
from selfspec_tune.errors import FileFormatError, StorageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def disk_full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@settings(deadline=None, max_examples=50)
@given(value=json_values)
def test_json_reads_back_as_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json_atomic(path, value)
    assert files.read_json(path) == value


def test_a_list_of_numbers_is_one_line(tmp_path: Path) -> None:
    value = {"numbers": [1, -2.5e-7, None, True], "texts": ["[\n1\n]", ","], "lists": [[1, 2], []], "none": []}
    files.write_json_atomic(tmp_path / "a.json", value)
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert lines[1] == '  "numbers": [1, -2.5e-07, null, true],'
    assert lines[2:5] == ['  "texts": [', '    "[\\n1\\n]",', '    ","']
    assert lines[6:9] == ['  "lists": [', "    [1, 2],", "    []"]
    assert files.read_json(tmp_path / "a.json") == value


@settings(deadline=None, max_examples=50)
@given(records=st.lists(json_values, max_size=5))
def test_json_lines_read_back_as_appended(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "records.jsonl"
    for record in records:
        files.append_jsonl(path, record)
    assert files.read_jsonl(path) == records


def test_writing_makes_missing_folders_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_atomic(path, "first")
    files.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_says_where_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "skip.json"
    files.write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError, match=r"skip\.json: No space left on device \(\d+ MiB free"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, r" \(\d+ MiB free in .*\)\. Free some space, or choose a folder on another volume"),
        (errno.EDQUOT, r" \(\d+ MiB free in .*\)\. Free some space"),
        (errno.EEXIST, r"\. Something else has the name of a folder there: move it away"),
        (errno.ENOTDIR, r"\. Something else has the name of a folder there"),
        (errno.EACCES, r"\. Choose a folder that you may write to, or have its owner let you"),
        (errno.EPERM, r"\. Choose a folder that you may write to, or"),
        (errno.EROFS, r"\. Nobody can write there as it is: choose a folder on another volume"),
        (errno.EISDIR, r"\. That is a folder: give the name of a file"),
        (errno.ENAMETOOLONG, r"\. Choose a shorter name"),
        (errno.ELOOP, r"\. Its links lead back to themselves"),
        (errno.ENOENT, r"\. Something on the way to it is not there"),
        (errno.EIO, r"\. Choose a folder that you may write to\.$"),
    ],
)
def test_each_reason_has_its_own_advice(tmp_path: Path, number: int, advice: str) -> None:
    reason = os.strerror(number)
    error = files.storage_error(tmp_path / "a.json", OSError(number, reason))
    assert re.search(rf"^Cannot write {re.escape(str(tmp_path))}/a\.json: {re.escape(reason)}{advice}", str(error))


def test_whether_a_file_can_be_written_is_told_without_writing_it(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    files.check_writable(tmp_path / "old.csv")
    files.check_writable(tmp_path / "new" / "a.csv")
    assert (tmp_path / "old.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "old.csv"]
    with pytest.raises(StorageError, match="Choose a shorter name"):
        files.check_writable(tmp_path / ("n" * 250))
    with pytest.raises(StorageError, match="move it away"):
        files.check_writable(tmp_path / "old.csv" / "a.csv")


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose a folder"):
        files.write_atomic(tmp_path / "file" / "a.json", "")
    with pytest.raises(StorageError, match="choose a folder"):
        files.append_jsonl(tmp_path / "file" / "a.jsonl", {})


def test_infinities_never_reach_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_atomic(tmp_path / "a.json", float("inf"))
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_is_ignored_when_read_and_cut_when_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text('{"trial": 0}\n{"trial": 1}\n{"trial": 2, "va')
    assert files.read_jsonl(path) == [{"trial": 0}, {"trial": 1}]
    files.append_jsonl(path, {"trial": 3})
    assert path.read_text() == '{"trial": 0}\n{"trial": 1}\n{"trial": 3}\n'


def test_a_file_torn_in_its_first_line_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text("x" * 10_000)
    files.append_jsonl(path, 1)
    assert path.read_text() == "1\n"


def test_a_record_that_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.jsonl"
    files.append_jsonl(path, {"trial": 0})
    real_write = os.write

    def write_a_little_then_fail(descriptor: int, data: memoryview) -> int:
        if len(data) < 12:
            disk_full()
        return real_write(descriptor, data[:5])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_a_little_then_fail)
        with pytest.raises(StorageError, match="No space left"):
            files.append_jsonl(path, {"trial": 1})
    assert path.read_text() == '{"trial": 0}\n'


def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text("1\n{oops\n3\n")
    with pytest.raises(FileFormatError, match="line 2 is not JSON"):
        files.read_jsonl(path)


def test_a_journal_that_does_not_exist_yet_holds_nothing(tmp_path: Path) -> None:
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


def test_missing_corrupt_and_binary_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "skip.json"
    with pytest.raises(FileFormatError, match="does not exist"):
        files.read_json(path)
    path.write_text('{"schema": ')
    with pytest.raises(FileFormatError, match="not valid JSON"):
        files.read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="not UTF-8"):
        files.read_json(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.read_json(tmp_path)


def test_hashes_are_sha256_of_the_text() -> None:
    assert files.sha256_hex("é") == hashlib.sha256("é".encode()).hexdigest()
    assert files.short_hash("é") == files.sha256_hex("é")[:16]


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", '{"a": 1, "a": 2}', "[" * 100_000])
def test_what_python_takes_for_json_and_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"value\.json is not valid JSON"):
        files.read_json(path)
    path.write_text(f"1\n{text}\n")
    with pytest.raises(FileFormatError, match=r"value\.json, line 2 is not JSON"):
        files.read_jsonl(path)


def test_a_models_own_settings_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity], "a": 1, "a": 2}')
    assert files.read_settings(path) == {"time_step_limit": [0.0, float("inf")], "a": 2}
    for text in ("[]", "[" * 100_000, "{", '"x"'):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=r"config\.json"):
            files.read_settings(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes((b"\xff\xfe" if encoding == "utf-16-le" else b"") + '{"é": 1}'.encode(encoding))
    assert files.read_json(path) == {"é": 1}
    assert files.read_text(path) == '{"é": 1}'


def test_lines_behind_a_byte_order_mark_are_read_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\r\n2\r\n")
    files.append_jsonl(path, 3)
    assert files.read_jsonl(path) == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", ['{"schema": "x"}', '["日本語の文章です"]'])
def test_wide_characters_without_a_byte_order_mark_are_named_with_what_converts_them(
    tmp_path: Path, encoding: str, text: str
) -> None:
    path = tmp_path / "skip.json"
    path.write_bytes(text.encode(encoding))
    for read in (files.read_json, files.read_text, files.read_jsonl, files.read_settings):
        with pytest.raises(FileFormatError, match=rf"is {encoding} text; expected UTF-8\. Save it as UTF-8; `iconv -f"):
            read(path)


def test_lines_are_added_in_utf_8_and_so_refused_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(FileFormatError, match=r"runs\.jsonl is UTF-16 text; expected UTF-8"):
        files.read_jsonl(path)


def test_a_device_is_no_file(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(FileFormatError, match=f"{device} is a device"):
            files.read_json(device)


def test_a_name_that_is_no_text_is_written_and_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff")
    files.write_json_atomic(tmp_path / "a.json", {"model": name})
    files.append_jsonl(tmp_path / "a.jsonl", {"model": name})
    assert files.read_json(tmp_path / "a.json") == files.read_jsonl(tmp_path / "a.jsonl")[0] == {"model": name}


@pytest.mark.parametrize("error", [KeyError("answers"), TypeError("x"), AssertionError(), RecursionError(), IndexError])
def test_what_another_shape_raises_names_the_file(error: Exception) -> None:
    message = r"study/a\.json is not as this program writes it \(.+\)\. .*restore a copy"
    with pytest.raises(FileFormatError, match=message), files.taken_apart("study/a.json"):
        raise error


def test_what_is_missing_is_named() -> None:
    with pytest.raises(FileFormatError, match="it lacks 'answers'"), files.taken_apart("a.json"):
        {}["answers"]


def test_an_error_that_names_the_file_and_a_full_disk_pass_as_they_are() -> None:
    for error in (FileFormatError("a.json is torn"), StorageError("disk full"), OSError(errno.EIO, "broken")):
        with pytest.raises(type(error)) as caught, files.taken_apart("a.json"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "skip.json"
    path.write_text("old")
    path.chmod(mode)
    files.write_atomic(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "skip.json", tmp_path / "skip.json"
    for content in ("first, where the link leads nowhere", "second"):
        link.unlink(missing_ok=True)
        link.symlink_to("there/skip.json")
        files.write_atomic(link, content)
        assert link.is_symlink()
        assert target.read_text() == content
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["skip.json"]


def test_a_link_to_itself_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="loop"):
        files.write_atomic(tmp_path / "loop", "x")

"""Paths that cannot be: one line that names the path and says what to do, wherever one is given."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from selfspec_tune.models.default_model import CACHE_VARIABLE
from tests.results_kit import skip_config

LONG_NAME, LONG_PATH = "n" * 300, "/".join(["folder"] * 900)


def run(*arguments: str, **env: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", **env}).invoke(app, list(arguments))


def check(result: Result, exit_code: int, *parts: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert "--debug" not in result.stderr
    for part in parts:
        assert part in lines[-1]


@pytest.fixture
def skip_file(tmp_path: Path) -> str:
    skip_config().save(tmp_path / "skip.json")
    return str(tmp_path / "skip.json")


@pytest.mark.parametrize("path", [LONG_NAME, LONG_PATH], ids=["name", "path"])
@pytest.mark.parametrize(
    "command",
    [
        ["show", "PATH"],
        ["bench", "PATH"],
        ["export", "PATH", "--to", "self-sd"],
        ["export", "PATH", "--to", "nas", "--out", "draft", "--model", "m"],
        ["import", "PATH", "--model", "MODEL"],
        ["bench", "--model", "PATH", "--skip-set", "mlp 1"],
        ["search", "--model", "PATH", "--trials", "1"],
        ["search", "--out", "PATH", "--trials", "1", "--model", "nowhere"],
        ["bench", "SKIP", "--out", "PATH"],
        ["bench", "SKIP", "--csv", "PATH"],
        ["export", "SKIP", "--to", "self-sd", "--out", "PATH"],
        ["search", "--start-from", "PATH/skip.json", "--trials", "1"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_too_long_is_named(command: list[str], path: str, skip_file: str, tiny_llama_dir: Path) -> None:
    named = {"PATH": path, "SKIP": skip_file, "MODEL": str(tiny_llama_dir), "PATH/skip.json": f"{path}/skip.json"}
    arguments = [named.get(part, part) for part in command]
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    check(result, result.exit_code, path[:40])


@pytest.mark.parametrize(
    "command",
    [
        ["show", "a\0b"],
        ["bench", "a\0b"],
        ["export", "a\0b", "--to", "self-sd"],
        ["bench", "--model", "a\0b", "--skip-set", "mlp 1"],
        ["bench", "--model", "a\0b.gguf", "--skip-set", "mlp 1"],
        ["export", "SKIP", "--to", "nas", "--out", "draft", "--model", "a\0b"],
        ["bench", "--model", "MODEL", "--skip-set", "a\0b.json"],
    ],
    ids=repr,
)
def test_a_path_with_a_nul_is_named(command: list[str], skip_file: str, tiny_llama_dir: Path) -> None:
    named = {"SKIP": skip_file, "MODEL": str(tiny_llama_dir)}
    result = run(*[named.get(part, part) for part in command])
    assert result.exit_code == 2, result.output
    assert "\0" not in result.output
    assert "--debug" not in result.stderr


def test_a_nul_in_a_file_is_no_path_either(tmp_path: Path) -> None:
    model = skip_config().model.model_copy(update={"id": "a\0b"})
    skip_config(model=model).save(tmp_path / "skip.json")
    check(run("bench", str(tmp_path / "skip.json")), 2, "a\\x00b")


def test_the_home_of_a_user_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    for name in ("~nosuchuser/model", "~nosuchuser/model.gguf", "~nosuchuser"):
        check(run("bench", "--model", name, "--skip-set", "mlp 1"), 2, name)


def test_the_home_of_a_user_that_is_not_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, "~nosuchuser/x")
    check(run("bench", "--model", "smollm2-135m", "--skip-set", "mlp 1"), 2, CACHE_VARIABLE, "~nosuchuser/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    check(run("show", str(tmp_path / "closed" / "skip.json")), 1, "closed", "Permission denied")


def test_a_link_is_not_replaced_by_an_export(tmp_path: Path, skip_file: str, tiny_llama_dir: Path) -> None:
    (tmp_path / "mine.json").write_text("mine")
    for name, target in (("file", "mine.json"), ("dangling", "nowhere.json")):
        link = tmp_path / name
        link.symlink_to(target)
        for force in ([], ["--force"]):
            check(run("export", skip_file, "--to", "self-sd", "--out", str(link), *force), 2, "symbolic link")
            flags = tmp_path / "flags.json"
            flags.write_text(json.dumps([0, 1] * 4))
            imported = ["import", str(flags), "--model", str(tiny_llama_dir), "--out", str(link), *force]
            check(run(*imported), 2, "symbolic link")
        assert link.is_symlink()
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert not (tmp_path / "nowhere.json").exists()

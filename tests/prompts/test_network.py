"""Local prompts are read without a word to anyone: a socket that is opened fails these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfspec_tune.prompts import load_prompts
from tests.search_kit import prompt_file, prompt_rows

# An audit hook hears of every look-up and connection, whichever library makes it.
NO_SOCKETS = """
import sys
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.bind", "socket.sendto"):
        print("network:", event, arguments, file=sys.stderr)
        import os
        os._exit(99)
sys.addaudithook(refuse)
"""


def run_offline(code: str, *arguments: str) -> str:
    """Run in a process that ends with 99 at the first use of a network, where nothing says that there is none."""
    told = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    command = [sys.executable, "-c", NO_SOCKETS + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """The same prompts in a file of every kind, and in a folder."""
    import pandas as pd

    frame = pd.DataFrame(prompt_rows(6))
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_csv(tmp_path / "p.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_json(tmp_path / "p.json", orient="records")
    (tmp_path / "p.txt").write_text("\n".join(frame["prompt"]))
    (tmp_path / "folder").mkdir()
    prompt_file(tmp_path / "folder" / "p.jsonl", 6)
    names = ("p.csv", "p.tsv", "p.parquet", "p.json", "p.txt", "folder", "folder/p.jsonl")
    return [str(tmp_path / name) for name in names]


def test_prompt_files_are_read_without_a_network(sources: list[str]) -> None:
    code = """
from selfspec_tune.prompts import load_prompts
for source in sys.argv[1:]:
    print(*sorted(prompt.hash for prompt in load_prompts(source)))
assert "datasets" not in sys.modules
"""
    lines = run_offline(code, *sources).splitlines()
    assert lines == [" ".join(sorted(prompt.hash for prompt in load_prompts(sources[0])))] * len(sources)


def test_a_search_on_local_files_uses_no_network(tmp_path: Path, tiny_llama_dir: Path, sources: list[str]) -> None:
    code = "from selfspec_tune.cli.app import main; main()"
    command = f"search --model {tiny_llama_dir} --max-new-tokens 4 --trials 1 --runner fast --dry-run"
    shown = run_offline(code, *command.split(), "--prompts", sources[0], "--out", str(tmp_path / "study"))
    assert "calibrate" in shown


def test_the_guard_hears_of_a_connection() -> None:
    with pytest.raises(AssertionError, match="network: socket"):
        run_offline("import socket; socket.create_connection(('127.0.0.1', 9))")

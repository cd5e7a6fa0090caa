"""``studies/engine-cpu/answers.py``: what the Python API costs beside the engine alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import kit, scripts_kit


def test_both_figures_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(kit.tiny_llama(tmp_path, chat=True, context=4096))
    few = ["--num-prompts", "2", "--max-new-tokens", "4", "--rounds", "2", "--prefix", "40", "--times", "3"]
    script = scripts_kit.STUDIES / "engine-cpu" / "answers.py"
    assert scripts_kit.run_script(monkeypatch, script, model, "--runner", "fast", *few) == 0
    _, answers, first = capsys.readouterr().out.splitlines()
    assert re.match(
        r"Model.generate: \d+\.\d+× the tokens per second of bench's arm \[\S+\], 2 prompts, 2 pairs of each",
        answers,
    )
    assert re.match(
        r"First token of a prompt of 4\d tokens: \S+ ms, \d+\.\d+× the prefill \(\S+ ms\), medians of 3\.", first
    )

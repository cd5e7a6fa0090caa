"""Messages name fields, as a Python caller knows them; the command line writes them as its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfspec_tune
from selfspec_tune.cli import output
from selfspec_tune.cli.fields import with_options
from selfspec_tune.cli.options import FLAGS
from selfspec_tune.requests import PromptOptions

ROOT = Path(selfspec_tune.__file__).parent
# What they write are command lines of other programs.
OTHERS = {"export/decoding.py", "export/formats/gguf.py", "export/formats/nas.py", "models/default_model.py"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
NAMED = re.compile(r"(?<!`)`([a-z][a-z0-9_]*)`(?!`)")


def strings_below_cli(*, docstrings: bool) -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("cli/") or name == "__main__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shown = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (docstrings or id(node) not in shown):
                yield name, node.value


def test_no_string_below_the_command_line_names_its_options() -> None:
    strings = [(name, text) for name, text in strings_below_cli(docstrings=True) if name not in OTHERS]
    assert len(strings) > 1000
    assert not {(name, flag) for name, text in strings for flag in FLAG.findall(text) if flag in FLAGS.values()}


def test_every_field_that_a_message_names_is_an_option() -> None:
    named = {(name, field) for name, text in strings_below_cli(docstrings=False) for field in NAMED.findall(text)}
    assert len(named) > 50
    assert not {(name, field) for name, field in named if field not in FLAGS}


def test_the_command_line_writes_a_field_as_its_option() -> None:
    with pytest.raises(Exception, match=r"^`top_k` -3: expected") as error:
        PromptOptions(top_k=-3)
    assert with_options(str(error.value)).startswith("--top-k -3: expected")
    assert with_options("Give `max_new_tokens` or `prompts`.") == "Give --max-new-tokens or --prompts."


@pytest.mark.parametrize("text", ["`nothing_known` stays", "seed", "`seed", "`--seed`", "``seed``", "`selfspec-tune`"])
def test_what_is_no_field_stays(text: str) -> None:
    assert with_options(text) == text


def test_reports_write_options_and_answers_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output.result_console().print("Raise `num_prompts`.", markup=False)
    output.SafeConsole(highlight=False).out("`seed` and `top_k`")
    output.say("`seed` in JSON")
    output.say("lower `seed`", to_errors=True)
    said = capsys.readouterr()
    assert said.out == "Raise --num-prompts.\n`seed` and `top_k`\n`seed` in JSON\n"
    assert said.err == "lower --seed\n"

"""The table of options: what the parsers are made of, and what the requests hold."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from selfspec_tune.arguments import bench_request, search_request
from selfspec_tune.cli.app import app
from selfspec_tune.cli.command import Asked
from selfspec_tune.cli.options import FLAGS, OPTIONS, options_of
from selfspec_tune.cli.options.shared import complete_model
from selfspec_tune.errors import UsageError
from selfspec_tune.model.generation import AnswerOptions, SamplingOptions
from selfspec_tune.requests import (
    BenchRequest,
    DoctorRequest,
    DraftOptions,
    Dtype,
    ExportRequest,
    ModelOptions,
    PromptOptions,
    Sampling,
    SearchRequest,
)

COMMANDS = vars(get_command(app))["commands"]
# Fields that are no options: parts made of options, where studies lie, and what only files pin or keep.
MADE_OF_OTHERS = {"model", "prompts", "draft", "model_overrides", "prompt_overrides", "draft_overrides", "studies"}
NO_OPTIONS: dict[type[Any], set[str]] = {
    ModelOptions: set(),
    Sampling: set(),
    PromptOptions: {"template_date", *Sampling.__dataclass_fields__},
    DraftOptions: set(),
    SearchRequest: MADE_OF_OTHERS,
    BenchRequest: MADE_OF_OTHERS | {"log", "uniform_and_random"},  # --out names the log's place; --no-references
    DoctorRequest: set(),
    ExportRequest: set(),
    AnswerOptions: {*Sampling.__dataclass_fields__},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_s_parser_is_its_rows(command: str) -> None:
    rows = options_of(command)
    shown = {row.name: (row.help, None if row.panel == "Options" else row.panel.value, row.metavar) for row in rows}
    made = [option for option in COMMANDS[command].params if option.name != "help"]
    assert {option.name: (option.help, option.rich_help_panel, option.metavar) for option in made} == shown
    assert [option.name for option in made] == [row.name for row in rows]
    for row, option in zip(rows, made, strict=True):
        assert row.is_argument or row.flag in option.opts
        assert (option.required, option.default) == (row.is_required, row.unset)


def test_a_narrow_terminal_s_help_pages_have_options_written_out() -> None:
    code = f"""
from typer.testing import CliRunner
from selfspec_tune.cli.app import app
for command in {[*COMMANDS]}:
    print(CliRunner().invoke(app, [command, "--help"]).stdout)
"""
    environment = {**os.environ, "COLUMNS": "60"}
    pages = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    words = set(pages.stdout.split())
    rows = [row for command in COMMANDS for row in options_of(command)]
    assert not {row.flag for row in rows if not row.is_argument} - words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_s_paragraphs_break_where_the_terminal_ends(command: str) -> None:
    assert all("\n" not in paragraph for paragraph in COMMANDS[command].help.split("\n\n"))
    assert COMMANDS[command].help.strip()


def test_a_name_means_one_flag_in_all_commands() -> None:
    assert all(row.is_argument or FLAGS[row.name] == row.flag for row in OPTIONS)


def test_no_command_has_an_option_twice() -> None:
    named = [(command, row.name) for row in OPTIONS for command in row.commands]
    assert len(named) == len(set(named))
    assert {command for command, _ in named} == set(COMMANDS)


@pytest.mark.parametrize("part", NO_OPTIONS)
def test_every_field_of_a_request_that_is_an_option_has_a_row(part: type[Any]) -> None:
    assert {row.field for row in OPTIONS if row.of is part} == {one.name for one in fields(part)} - NO_OPTIONS[part]


def test_what_a_row_says_of_commands_that_it_is_not_in_is_a_mistake() -> None:
    assert all(set(row.differs or ()) <= set(row.commands) for row in OPTIONS)


@pytest.mark.parametrize("command", ["search", "bench", "generate"])
def test_an_unknown_sampling_option_is_refused_alike_by_library_and_command(command: str) -> None:
    library = {"search": search_request, "bench": bench_request, "generate": lambda **own: AnswerOptions.of(own)}  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Did you mean temperature"):
        library[command](temprature=0.5)
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "120"}).invoke(app, [command, "--temprature", "0.5"])
    assert result.exit_code == UsageError.exit_code
    assert "No such option: --temprature" in result.stderr
    assert "--temperature" in result.stderr


@pytest.mark.parametrize("name", Sampling.__dataclass_fields__)
def test_every_sampling_option_is_one_row_for_all_that_decode(name: str) -> None:
    (row,) = (row for row in OPTIONS if row.name == name)
    assert set(row.commands) == {"search", "compare", "bench", "generate"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("top_k", -3), ("top_p", 0.0), ("min_p", 2.0), ("repetition_penalty", 0.0)],
)
@pytest.mark.parametrize("command", ["search", "bench --model smollm2-135m --skip-set none", "generate --prompt a"])
def test_a_sampling_option_that_means_nothing_is_refused_alike(command: str, name: str, value: float) -> None:
    library = {"search": search_request, "bench": PromptOptions, "generate": lambda **own: AnswerOptions.of(own)}  # type: ignore[arg-type]
    with pytest.raises(UsageError) as refused:
        library[command.split()[0]](**{name: value})
    assert str(refused.value).startswith(f"`{name}` {value}: expected ")
    result = CliRunner().invoke(app, [*command.split(), FLAGS[name], str(value)])
    assert result.exit_code == UsageError.exit_code
    assert result.stderr.splitlines()[-1] == f"error: {refused.value}".replace(f"`{name}`", FLAGS[name])


def test_the_keywords_of_an_answer_are_its_options() -> None:
    assert set(get_type_hints(SamplingOptions)) == set(AnswerOptions.__dataclass_fields__)


def test_only_given_options_count() -> None:
    values = {"dtype": Dtype.FLOAT32, "seed": 0, "top_p": None, "allow_pickle": False, "trust_remote_code": True}
    asked = Asked(options_of("search"), {**values, "ngram": False})
    found = asked.given(*asked)
    assert found == {"dtype": "float32", "seed": 0, "trust_remote_code": True, "ngram": False}
    assert type(found["dtype"]) is str


def test_the_shell_completes_aliases() -> None:
    assert "llama-2-13b" in complete_model("Llama-2")
    assert complete_model("nothing-like-it") == []

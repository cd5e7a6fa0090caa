"""README.md and docs/: every link leads somewhere, and what they say of the program is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import selfspec_tune
from selfspec_tune.cli.app import app
from selfspec_tune.plans.refused import REFUSED, UNPLANNED
from selfspec_tune.plans.registry import FAMILIES
from selfspec_tune.search.study import StudyFolder

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "studies").rglob("*.md"))]
COMMANDS: dict[str, Any] = get_command(app).commands
OF_NO_COMMAND = {"--help", "--version", "--install-completion"}
OF_SCRIPTS = {"--all", "--dry", "--paths"}

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<file>[^)#:]*)(?:#(?P<heading>[^)]+))?\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


@cache
def _headings(path: Path) -> frozenset[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles)


@cache
def _hooks() -> Any:
    spec = spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _options(command: str) -> set[str]:
    return {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def _command_lines(path: Path) -> Iterator[list[str]]:
    """What follows ``selfspec-tune`` in every command line that a page shows."""
    for block in _FENCE.finditer(path.read_text()):
        for line in block["code"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if block["language"] == "bash" else []
            if words and words[0].endswith("selfspec-tune"):
                yield words[1:]


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    missing = []
    for path in LINKING:
        for link in _LINK.finditer(_prose(path)):
            target = (path.parent / link["file"]).resolve() if link["file"] else path
            if not target.is_file() or (link["heading"] and link["heading"] not in _headings(target)):
                missing.append((_name(path), link[0]))

    assert missing == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_with_its_options(command: str) -> None:
    page = DOCS / "commands" / f"{command}.md"

    assert f"<!-- options: {command} -->" in page.read_text()
    assert f"({command}.md)" in (DOCS / "commands" / "index.md").read_text()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]

    assert [page for page in DOCS.rglob("*.md") if f": {page.relative_to(DOCS).as_posix()}\n" not in navigation] == []


def test_every_command_line_shown_is_one_that_the_program_takes() -> None:
    lines = [line for path in PAGES for line in _command_lines(path)]

    assert len(lines) > 20
    for command, *words in lines:
        assert {word for word in words if word.startswith("--")} <= _options(command), (command, words)


def test_every_option_named_is_one_of_the_program() -> None:
    known = (OF_NO_COMMAND | OF_SCRIPTS).union(*(_options(command) for command in COMMANDS))

    for path in PAGES:
        spans = re.findall(r"`[^`\n]+`", _prose(path))
        assert {option for span in spans for option in _OPTION.findall(span)} <= known, _name(path)


def test_every_file_of_a_study_is_described() -> None:
    described = (DOCS / "files.md").read_text()
    names = {path.name for path in vars(StudyFolder(Path("study"))).values()} - {"study"}

    assert {name for name in names if f"`{name}`" not in described} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tables_of_options_hold_every_option_in_rows_of_three_cells(command: str) -> None:
    rows = [line for line in _hooks().option_tables(command).splitlines() if line.startswith("| `")]

    assert {option for row in rows for option in _OPTION.findall(row.split(" | ")[0])} == {
        option for option in _options(command) if option.startswith("--")
    } - {"--help"}
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_the_reference_has_every_public_name() -> None:
    reference = _hooks().api_reference()

    assert set(re.findall(r"^::: selfspec_tune\.\S+\.(\w+)$", reference, re.MULTILINE)) == set(
        selfspec_tune.__all__
    ) - {"__version__"}


def test_the_page_of_models_has_every_family_and_every_refusal() -> None:
    served, without = _hooks().family_table(), _hooks().refusals()

    assert {row.split(" | ")[0].split(", ")[0] for row in served.splitlines() if row.startswith("| ")} == {
        "| family",
        "| ---",
        *(f"| {name}" for name in FAMILIES),
    }
    assert all(reason in without and name in without for name, reason in (REFUSED | UNPLANNED).items())
    page = (DOCS / "models.md").read_text()
    assert all(marker in page for marker in ("<!-- families -->", "<!-- refused -->"))
    assert _headings(DOCS / "hybrids.md") >= {"recurrent-hybrids"}  # which refusals name


def test_the_links_of_the_repository_lead_to_their_places_in_the_site() -> None:
    link = _hooks()._link

    assert link("docs/commands/search.md", "index.md") == "commands/search.md"
    assert link("studies/README.md", "index.md") == "studies/README.md"
    assert link("../../studies/growth/README.md", "commands/search.md") == "../studies/growth/README.md"
    assert link("../README.md", "method.md") == "index.md"
    assert link("NOTES.md", "studies/growth/README.md") == "NOTES.md"
    assert link("https://optuna.org", "method.md") == "https://optuna.org"

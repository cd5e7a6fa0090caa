"""What the site is made of besides the pages of this folder; mkdocs calls the functions that begin with ``on_``.

- README.md is the site's home, and the changelog, the licence and the published studies are pages and files of it. A
  link that works in the repository works in the site.
- ``<!-- options: search -->`` becomes the tables of a command's options, made from the program.
- ``<!-- api -->`` becomes the reference of every public name.
- ``<!-- families -->`` and ``<!-- refused -->`` become the tables of `selfspec-tune models`, made from the plans.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_command

import selfspec_tune
from selfspec_tune.cli.app import app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_HOME = "index.md"
_OPTIONS = re.compile(r"<!-- options: (?P<command>\S+) -->")
_API = "<!-- api -->"
_FAMILIES, _REFUSED = "<!-- families -->", "<!-- refused -->"
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#]+)")
_REMARKS = re.compile(r"  \[(?P<remarks>[^\[\]]*)\]$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    from mkdocs.structure.files import File

    for path in outside():
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, _in_site(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the options and the reference, and lead the links of the repository to their places in the site."""
    markdown = _OPTIONS.sub(lambda found: option_tables(found["command"]), markdown).replace(_API, api_reference())
    if _FAMILIES in markdown:
        markdown = markdown.replace(_FAMILIES, family_table()).replace(_REFUSED, refusals())
    return _LINK.sub(lambda found: _link(found["target"], page.file.src_uri), markdown)


def outside() -> Iterator[Path]:
    """The files of the repository outside of docs/ that belong to the site."""
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"))
    for kind in ("md", "svg"):
        yield from sorted((ROOT / "studies").rglob(f"*.{kind}"))


def option_tables(command: str) -> str:
    """The options of a command as Markdown tables, one for each group that ``--help`` shows."""
    group: Any = get_command(app)
    entry = group.commands[command]
    context = entry.make_context(command, [], resilient_parsing=True)
    tables: dict[str, list[str]] = {}
    for parameter in entry.params:
        record = parameter.get_help_record(context)
        if record is not None:
            default_group = "Arguments" if parameter.param_type_name == "argument" else "Options"
            tables.setdefault(parameter.rich_help_panel or default_group, []).append(_row(*record))
    head = "| option | meaning | |\n| --- | --- | --- |\n"
    return "\n\n".join(f"**{name}**\n\n{head}" + "\n".join(rows) for name, rows in tables.items())


def api_reference() -> str:
    """A heading with the docstring for every public name, found where ``__init__.py`` says that it is from."""
    source = (ROOT / "selfspec_tune" / "__init__.py").read_text(encoding="utf-8")
    froms = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    homes = {name.name: node.module for node in froms for name in node.names}
    return "\n\n".join(f"::: {homes[name]}.{name}" for name in selfspec_tune.__all__ if not name.startswith("__"))


def family_table() -> str:
    """Which engines serve each family and what the others lack, as a Markdown table."""
    from selfspec_tune.engine.expected import families  # loads torch
    from selfspec_tune.report.models import missing, served_by, summary

    found = dict(families())
    rows = [f"| {name} | {served_by(service)} | {'<br>'.join(missing(service))} |" for name, service in found.items()]
    head = "| family | served by | missing |\n| --- | --- | --- |\n"
    return head + "\n".join(rows) + f"\n\n{summary(found)}"


def refusals() -> str:
    """Why families have no plan, and why they are refused, as Markdown tables."""
    from selfspec_tune.plans.refused import REFUSED, UNPLANNED
    from selfspec_tune.report.models import by_reason

    tables = {"They run on the reference runner alone": UNPLANNED, "They are refused": REFUSED}
    return "\n\n".join(
        f"**{title}**\n\n| reason | families |\n| --- | --- |\n"
        + "\n".join(f"| {reason} | {', '.join(names)} |" for reason, names in by_reason(table).items())
        for title, table in tables.items()
    )


def _row(option: str, meaning: str) -> str:
    found = _REMARKS.search(meaning)
    remarks = found["remarks"] if found else ""
    meaning = _REMARKS.sub("", meaning)
    cells = (f"`{option}`", _literal(meaning), _literal(remarks))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _literal(text: str) -> str:
    """``text`` with what Markdown and HTML would read as marks written as it is."""
    return re.sub(r"(?P<mark>[<*_\[\]])", r"\\\g<mark>", text)


def _in_site(name: str) -> str:
    """Where a file of the repository is in the site."""
    return _HOME if name == "README.md" else name.removeprefix("docs/")


def _in_repository(source: str) -> str:
    if source == _HOME:
        return "README.md"
    return source if any(path == ROOT / source for path in outside()) else f"docs/{source}"


def _link(target: str, source: str) -> str:
    """``target`` of a link on the page ``source`` as the site has it."""
    if ":" in target:
        return target
    named = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(source)), target))
    return os.path.relpath(_in_site(named), posixpath.dirname(source) or ".").replace(os.sep, "/")

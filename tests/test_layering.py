"""The walls of the house: imports go one way, and what needs no tensors loads no torch."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import selfspec_tune

PACKAGE = "selfspec_tune"
ROOT = Path(selfspec_tune.__file__).parent

# Lowest first. A module may import from its own layer and from those before it, never from a later one.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"callable_package", "checks", "temporary"}),
    frozenset({"cpu", "files"}),
    frozenset({"draft", "intervals", "provenance"}),
    frozenset({"plans"}),
    frozenset({"requests", "results"}),
    frozenset({"prompts", "reporting"}),
    frozenset({"arguments", "models"}),
    frozenset({"engine"}),
    frozenset({"measure"}),
    frozenset({"doctor", "search"}),
    frozenset({"bench"}),
    frozenset({"export", "model", "report"}),
    frozenset({"reproduce"}),
    frozenset({"__main__", "cli"}),
)
TORCH_FREE = frozenset(
    {
        "arguments",
        "callable_package",
        "checks",
        "cli",
        "cpu",
        "draft",
        "errors",
        "export",
        "files",
        "intervals",
        "measure.degeneration",
        "model.generation",
        "models.aliases",
        "models.default_model",
        "models.generation_settings",
        "models.model_files",
        "models.origin",
        "plans",
        "prompts",
        "provenance",
        "report",
        "reporting",
        "reproduce",
        "requests",
        "results",
        "temporary",
    }
)
TENSOR_LIBRARIES = frozenset({"accelerate", "safetensors", "tokenizers", "torch", "transformers"})
HEAVY = TENSOR_LIBRARIES | {"datasets", "gguf", "optuna", "pandas", "pyarrow", "pydantic", "scipy"}


def all_modules() -> dict[str, Path]:
    """Dotted name inside the package (``""`` for its root) to file; files to be copied elsewhere are no modules."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        if not (path.parent / "__init__.py").exists():
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = all_modules()


def unit(module: str) -> str:
    """The part of the table that a module belongs to: ``models.load`` is in ``models``."""
    return module.split(".")[0]


def layer_of(module: str) -> int | None:
    """Index in `LAYERS`; None for the package's root and for names that the table lacks."""
    return next((index for index, layer in enumerate(LAYERS) if unit(module) in layer), None)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_statements(tree: ast.AST, *, at_load: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; ``at_load`` leaves out those in functions and for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif at_load and (is_type_checking(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        else:
            yield from import_statements(node, at_load=at_load)


def own_targets(statement: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
    """The package's own modules that a statement imports, as names in `MODULES`."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        assert statement.level == 0, f"{importer}: relative import on line {statement.lineno}; write it in full"
        base = str(statement.module)
        names = [f"{base}.{alias.name}" for alias in statement.names]
    for name in names:
        if name.split(".")[0] != PACKAGE:
            continue
        inside = name.removeprefix(PACKAGE).lstrip(".")
        yield inside if inside in MODULES else inside.rpartition(".")[0]


def roots_of(statement: ast.Import | ast.ImportFrom) -> set[str]:
    """The libraries, ours among them, that a statement imports from."""
    names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [str(statement.module)]
    return {name.split(".")[0] for name in names}


def imports_of(module: str, *, at_load: bool = False) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = import_statements(tree, at_load=at_load)
    return {target for statement in found for target in own_targets(statement, module)}


def run_python(code: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter; its errors are the test's."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_has_a_layer() -> None:
    homeless = sorted(module for module in MODULES if module and layer_of(module) is None)
    assert homeless == [], f"give these a place in LAYERS: {homeless}"


def test_tests_lie_as_the_packages_they_are_of() -> None:
    """What is of no single package lies at their root; ``scripts`` has what is outside of the package."""
    tests = Path(__file__).parent
    packages = {name for name, path in MODULES.items() if name and "." not in name and path.name == "__init__.py"}
    folders = {path.parent.name for path in tests.glob("*/__init__.py")}
    assert folders == packages | {"scripts"}
    strangers = [
        str(path.relative_to(tests))
        for package in sorted(packages)
        for path in (tests / package).rglob("test_*.py")
        if not re.search(rf"\b{PACKAGE}(\.{package}\b| as )", path.read_text(encoding="utf-8"))
    ]
    assert strangers == [], f"tests that name neither their folder's package nor the library's face: {strangers}"


def test_imports_go_one_way() -> None:
    for module in MODULES:
        if not module:
            continue
        for target in imports_of(module):
            own, other = layer_of(module), layer_of(target)
            allowed = other is None or (own is not None and other <= own)
            assert allowed, f"{module} imports {target}, which is in a later layer"


def test_no_import_leads_back_to_where_it_began() -> None:
    graph = {module: imports_of(module) - {module, ""} for module in MODULES if module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(reversed(error.args[1]))}")


def test_the_units_of_a_layer_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module:
            graph.setdefault(unit(module), set()).update(unit(target) for target in imports_of(module) if target)
    try:
        TopologicalSorter({name: targets - {name} for name, targets in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' → '.join(reversed(error.args[1]))}")


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        re.split(r"[^\w-]", line)[0]
        for line in chain(project["dependencies"], *project["optional-dependencies"].values())
    }
    distributions = packages_distributions()
    for module, path in MODULES.items():
        for statement in import_statements(ast.parse(path.read_text(encoding="utf-8")), at_load=False):
            for library in roots_of(statement) - {PACKAGE, *sys.stdlib_module_names}:
                known = {name.replace("_", "-").lower() for name in distributions.get(library, [library])}
                assert known & declared, f"{module} imports {library}, which pyproject.toml does not name"


def test_the_import_reader_sees_what_it_should() -> None:
    source = "import selfspec_tune.files\nif TYPE_CHECKING:\n    from selfspec_tune.errors import UsageError\n"
    source += "def f():\n    from selfspec_tune.draft import skip_set\n"
    tree = ast.parse(source)
    everything = [t for s in import_statements(tree, at_load=False) for t in own_targets(s, "here")]
    at_load = [t for s in import_statements(tree, at_load=True) for t in own_targets(s, "here")]
    assert everything == ["files", "errors", "draft.skip_set"]
    assert at_load == ["files"]


def test_torch_free_modules_load_no_tensor_library() -> None:
    modules = [m for m in MODULES if m in TORCH_FREE or unit(m) in TORCH_FREE]
    modules = [m for m in modules if not m.startswith("export.runtimes.")]  # loaded to drive one of them
    code = """
import importlib, json, sys
names, banned = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
for name in names:
    importlib.import_module(name)
    loaded = sorted(banned & set(sys.modules))
    if loaded:
        sys.exit(f"importing {name} loads {loaded}")
"""
    names = [f"{PACKAGE}.{module}" for module in modules if not module.endswith("__main__")]
    banned = TENSOR_LIBRARIES | {"datasets", "gguf", "optuna", "pandas", "pyarrow"}
    run_python(code, json.dumps([PACKAGE, *names]), json.dumps(sorted(banned)))


def help_page(*command: str) -> tuple[str, set[str]]:
    """The text of a help page, and the modules loaded to print it."""
    code = """
import sys
from selfspec_tune.cli.app import main
sys.argv[0] = "selfspec-tune"
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(sys.modules))
"""
    page, _, loaded = run_python(code, *command, "--help").rpartition("loaded:")
    return page, set(loaded.split())


def test_help_loads_nothing_heavy() -> None:
    page, loaded = help_page()
    assert "Usage" in page
    assert HEAVY & loaded == set()


@pytest.mark.parametrize(
    "command", ["search", "compare", "bench", "generate", "show", "export", "models", "doctor", "reproduce"]
)
def test_the_help_of_a_command_loads_nothing_heavy_of_ours(command: str) -> None:
    page, loaded = help_page(command)
    assert command in page
    assert (HEAVY - {"pydantic"}) & loaded == set()  # typer reads a command's parameters with pydantic


def test_every_public_name_is_there() -> None:
    names = [name for name in selfspec_tune.__all__ if getattr(selfspec_tune, name) is not None]
    assert names == sorted(set(selfspec_tune.__all__))
    assert dir(selfspec_tune) == names


@pytest.mark.parametrize("name", ["bench", "export", "search"])
def test_packages_that_are_called_stay_packages(name: str) -> None:
    package = importlib.import_module(f"{PACKAGE}.{name}")
    assert getattr(selfspec_tune, name) is package
    function = getattr(package, name)
    assert inspect.signature(package) == inspect.signature(function)  # type: ignore[arg-type]
    assert callable(package)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'skipset'"):
        _ = selfspec_tune.skipset


def test_ruff_and_mypy_see_every_script_in_python() -> None:
    root = ROOT.parent
    tools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    without_suffix = [path for path in (root / "scripts").iterdir() if path.is_file() and not path.suffix]
    scripts = {f"scripts/{path.name}" for path in without_suffix if "python" in path.read_text().partition("\n")[0]}
    assert set(tools["ruff"]["extend-include"]) == scripts
    assert set(tools["mypy"]["files"]) == {"selfspec_tune", "docs", "scripts", "studies", *scripts}

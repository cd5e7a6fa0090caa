"""How far the code's ways lead, read from its syntax trees; nothing is run.

    .venv/bin/python scripts/measure_house.py [CHECKOUT] [--paths]

module    a Python file of the package that is imported; ``__init__.py`` counts only where it defines something
hop       from one function or class to another of the package that its body names, calls or hands on: by its own name,
          by an import, or as a method. A method's owner is known where the type is written (a parameter, a field, what
          a function returns, a class that is called); a protocol's or a base's method leads to all that implement it;
          where the type is not written, the method counts if a single class of the package has one of that name. A
          field that holds a function leads to those who make such an object
way       the fewest hops from the command ``search`` by way of its trials (`run_trials`, then `measure_block`, the unit
          of every measurement) to the decode loop (`self_speculative`), from there to the C function that decodes
          (``engine_run``), and the files that it enters
touched   modules in which an identifier, an import or an option's name matches a representative of its kind: what would
          have to be read, and mostly changed, to add another of that kind. Names that only sound like the lookup do not
          count: Python's ``LookupError``, transformers' ``prompt_lookup…`` (a rival) and its ``no_repeat_ngram_size``.
          The shared option is ``min_p``, of search, bench and generate alike: a number that is handed on.
          ``exit_threshold``, which stood here before, is what policies, their replay and every runner decide by, which
          is another draft policy and no other option. GGUF is counted as a format with options of its own (two fields
          of a request and of a manifest), whose kind of file is also read as a model (checkpoint) and served by a
          runtime of its own (llamacpp); nas as a format that has none of these. StarCoder 2 is counted as a family: its
          plan, the registry, and the list of GGUF's architectures whose layers are alike
flags     ``--option`` in strings and docstrings of modules that are not in ``cli/``, of other programs too
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median

PACKAGE = "selfspec_tune"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FORMATS_IN = re.compile(r"(cli|export|report|results|requests)\b")
TOUCHED = {
    "a draft source (n-gram lookup)": (
        re.compile(r"ngram(?!_size)|(?<!prompt)(?<!prompt[-_])look_?up(?!error)", re.IGNORECASE),
        re.compile(""),
    ),
    "a shared option (min_p)": (re.compile(r"min_?p\b", re.IGNORECASE), re.compile("")),
    "an export format (GGUF)": (re.compile(r"gguf", re.IGNORECASE), FORMATS_IN),
    "an export format (nas)": (re.compile(r"(?<![a-z])nas(?![a-z])", re.IGNORECASE), FORMATS_IN),
    "a runner (graphs)": (re.compile(r"(?<![a-z])graphs(?![a-z])|graphedrunner", re.IGNORECASE), re.compile("")),
    "a family (StarCoder 2)": (re.compile(r"starcoder2"), re.compile("")),
}

Definition = tuple[str, str]  # module, qualified name


def modules_of(root: Path) -> dict[str, ast.Module]:
    """Dotted name within the package to syntax tree."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if (path.parent / "__init__.py").exists():
            parts = path.relative_to(root / PACKAGE).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


class House:
    """Definitions of a package and which of them name which."""

    def __init__(self, modules: dict[str, ast.Module]) -> None:
        self.modules = modules
        self.bodies: dict[Definition, ast.AST] = {}
        self.methods: dict[str, set[Definition]] = defaultdict(set)
        self.names = {module: dict(self._bound(module)) for module in modules}
        for module, tree in modules.items():
            self._define(module, tree, "")
        self.fields: dict[Definition, dict[str, Definition]] = {}
        self.fields = {d: self._fields(d) for d, body in self.bodies.items() if isinstance(body, ast.ClassDef)}
        self.heirs: dict[Definition, set[Definition]] = defaultdict(set)
        for child, body in self.bodies.items():
            if isinstance(body, ast.ClassDef):
                for base in body.bases:
                    if (parent := self._resolve(child[0], base)) is not None:
                        self.heirs[parent].add(child)
        self.callables: dict[tuple[Definition, str], set[Definition]] = {}
        for owner, body in list(self.bodies.items()):
            for field in body.body if isinstance(body, ast.ClassDef) else []:
                if isinstance(field, ast.AnnAssign) and "Callable" in ast.unparse(field.annotation):
                    makers = {d for d, b in self.bodies.items() if self._makes(d, b, owner)}
                    self.callables[owner, ast.unparse(field.target)] = makers
        self.names_of = {definition: set(self._named(definition)) for definition in self.bodies}

    def _define(self, module: str, tree: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.bodies[module, prefix + node.name] = node
                if prefix:
                    self.methods[node.name].add((module, prefix + node.name))
                if isinstance(node, ast.ClassDef):
                    self._define(module, node, f"{prefix}{node.name}.")

    def _bound(self, module: str) -> Iterator[tuple[str, str]]:
        """Names that a module defines or imports, anywhere in it, as ``module:name`` or ``module``."""
        for node in ast.walk(self.modules[module]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                source = str(node.module).removeprefix(PACKAGE).lstrip(".")
                for alias in node.names:
                    yield alias.asname or alias.name, f"{source}:{alias.name}"
        for node in self.modules[module].body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name, f"{module}:{node.name}"

    def _find(self, target: str, depth: int = 0) -> Definition | str | None:
        """What ``module:name`` means: a definition, or a module's name; through packages that hand it on."""
        module, _, name = target.partition(":")
        if (module, name) in self.bodies:
            return module, name
        handed = self.names.get(module, {}).get(name)
        if handed is not None and handed != target and depth < 5:
            return self._find(handed, depth + 1)
        inner = ".".join(filter(None, (module, name)))
        return inner if inner in self.modules else None

    def _resolve(self, module: str, node: ast.AST) -> Definition | None:
        """The definition that a name, or an attribute of a module, means."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.Name(node.value)
        if isinstance(node, ast.Name):
            found = self._find(self.names[module].get(node.id, "?:?"))
            return found if isinstance(found, tuple) else None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            home = self._find(self.names[module].get(node.value.id, "?:?"))
            found = self._find(f"{home}:{node.attr}") if isinstance(home, str) else None
            return found if isinstance(found, tuple) else None
        return None

    def _type(self, module: str, annotation: ast.AST | None) -> Definition | None:
        """The class of ours in an annotation, also in ``X | None`` and in the last place of ``list[X]``."""
        if annotation is None:
            return None
        found = [d for n in ast.walk(annotation) if (d := self._resolve(module, n)) and self._is_class(d)]
        return found[-1] if found else None

    def _is_class(self, definition: Definition) -> bool:
        return isinstance(self.bodies.get(definition), ast.ClassDef)

    def _makes(self, definition: Definition, body: ast.AST, owner: Definition) -> bool:
        calls = (n for n in ast.walk(body) if isinstance(n, ast.Call)) if isinstance(body, ast.FunctionDef) else ()
        return any(self._resolve(definition[0], call.func) == owner for call in calls)

    def _fields(self, owner: Definition) -> dict[str, Definition]:
        module, found = owner[0], {}
        for node in ast.walk(self.bodies[owner]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = self._type(module, node.annotation)
            elif isinstance(node, ast.FunctionDef):
                kinds = {a.arg: self._type(module, a.annotation) for a in [*node.args.args, *node.args.kwonlyargs]}
                if any(ast.unparse(d).endswith("property") for d in node.decorator_list):
                    found[node.name] = self._type(module, node.returns)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Attribute):
                        kind = self._value_type(module, inner.value, kinds)
                        found.setdefault(inner.targets[0].attr, kind)
        return {name: kind for name, kind in found.items() if kind is not None}

    def _value_type(self, module: str, value: ast.AST, local: dict[str, Definition | None]) -> Definition | None:
        if isinstance(value, ast.Name):
            return local.get(value.id)
        if isinstance(value, ast.Attribute) and (owner := self._value_type(module, value.value, local)):
            return self.fields.get(owner, {}).get(value.attr)
        if isinstance(value, ast.Call):
            called = self._resolve(module, value.func)
            if called is None and isinstance(value.func, ast.Attribute):
                owner = self._value_type(module, value.func.value, local)
                called = (owner[0], f"{owner[1]}.{value.func.attr}") if owner else None
            body = self.bodies.get(called) if called else None
            if isinstance(body, ast.ClassDef):
                return called
            return self._type(called[0], body.returns) if isinstance(body, ast.FunctionDef) and called else None
        return None

    def _named(self, definition: Definition) -> Iterator[Definition]:
        """Definitions that a function's or class's body names."""
        module, qualified = definition
        body = self.bodies[definition]
        if isinstance(body, ast.ClassDef):
            made = [(module, f"{qualified}.{name}") for name in ("__init__", "__post_init__", "__call__")]
            yield from (definition for definition in made if definition in self.bodies)
            return
        local: dict[str, Definition | None] = {}
        owner = qualified.rpartition(".")[0]
        if owner:
            local["self"] = local["cls"] = (module, owner)
        for node in ast.walk(body):
            if isinstance(node, ast.arg) and node.annotation is not None:
                local[node.arg] = self._type(module, node.annotation)
            elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
                local[node.optional_vars.id] = self._value_type(module, node.context_expr, local)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                local.setdefault(node.targets[0].id, self._value_type(module, node.value, local))
            elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
                local.setdefault(node.target.id, self._value_type(module, node.iter, local))
        for node in ast.walk(body):
            if isinstance(node, ast.Name | ast.Attribute) and (found := self._resolve(module, node)):
                yield found
            elif isinstance(node, ast.Attribute):
                yield from self._method(self._value_type(module, node.value, local), node.attr)

    def _method(self, owner: Definition | None, name: str) -> Iterator[Definition]:
        if owner is None:
            if len(self.methods[name]) == 1:
                yield from self.methods[name]
            return
        yield from self.callables.get((owner, name), ())
        family, waiting = {owner}, [owner]
        while waiting:
            for heir in self.heirs[waiting.pop()]:
                if heir not in family:
                    family.add(heir)
                    waiting.append(heir)
        body = self.bodies[owner]
        is_protocol = isinstance(body, ast.ClassDef) and any(ast.unparse(b).startswith("Protocol") for b in body.bases)
        candidates = self.methods[name] if is_protocol else {(m, f"{q}.{name}") for m, q in family}
        yield from (d for d in candidates if d in self.bodies)

    def way(self, begin: Definition, ends: set[Definition]) -> list[Definition]:
        """The shortest way from ``begin`` to one of ``ends``; empty where none leads there."""
        before: dict[Definition, Definition | None] = {begin: None}
        waiting = deque([begin])
        while waiting:
            here = waiting.popleft()
            if here in ends:
                steps = [here]
                while (previous := before[steps[-1]]) is not None:
                    steps.append(previous)
                return steps[::-1]
            for target in sorted(self.names_of[here]):
                if target not in before:
                    before[target] = here
                    waiting.append(target)
        return []

    def named(self, name: str) -> set[Definition]:
        return {d for d in self.bodies if d[1] == name}

    def by_way_of(self, begin: Definition, *stations: set[Definition]) -> list[Definition]:
        """The ways from station to station, one after the other."""
        steps = [begin]
        for station in stations:
            further = self.way(steps[-1], station)
            if not further:
                return []
            steps += further[1:]
        return steps

    def calling(self, name: str) -> set[Definition]:
        """Functions that call something by this name of an object of others'."""
        return {
            definition
            for definition, body in self.bodies.items()
            if isinstance(body, ast.FunctionDef)
            and any(isinstance(n, ast.Call) and getattr(n.func, "attr", None) == name for n in ast.walk(body))
        }


def identifiers(tree: ast.Module) -> set[str]:
    """Names, attributes, arguments, imported names and option strings of a module; no prose."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                found.add(value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[-\w.]+", node.value):
            found.add(node.value)
    return found


def main() -> None:
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    root = Path(arguments[0]) if arguments else Path.cwd()
    modules = modules_of(root)
    faces = {
        name
        for name in modules
        if (root / PACKAGE / name.replace(".", "/") / "__init__.py").exists()
        and not any(isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_" for n in modules[name].body)
    }
    lines = {}
    for name in modules.keys() - faces:
        path = root / PACKAGE / name.replace(".", "/")
        path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        lines[name] = len(path.read_text(encoding="utf-8").splitlines())
    print(
        f"modules        {len(lines)} (and {len(faces)} packages' faces), median {median(lines.values()):g} lines, "
        f"{sum(n < 60 for n in lines.values())} below 60, {sum(n > 300 for n in lines.values())} above 300"
    )
    house = House(modules)
    begin = next(iter(house.named("search") & {d for d in house.bodies if d[0].startswith("cli.")}))
    trials = (house.named("run_trials"), house.named("measure_block"), house.named("self_speculative"))
    for label, stations in (("search → loop", trials), ("search → C", (*trials, house.calling("engine_run")))):
        steps = house.by_way_of(begin, *stations)
        print(f"{label:<14} {max(len(steps) - 1, 0)} hops over {len({m for m, _ in steps})} files")
        if "--paths" in sys.argv:
            print("".join(f"                 {module}: {name}\n" for module, name in steps), end="")
    if generate := house.named("generate") & {d for d in house.bodies if d[0].startswith("cli.")}:
        steps = house.by_way_of(next(iter(generate)), house.calling("engine_run"))
        print(f"generate → C   {max(len(steps) - 1, 0)} hops over {len({m for m, _ in steps})} files")
    for label, (pattern, places) in TOUCHED.items():
        hit = [n for n, t in modules.items() if places.match(n) and any(pattern.search(i) for i in identifiers(t))]
        print(f"{label}: {len(hit)} modules")
        if "--paths" in sys.argv:
            print(f"                 {', '.join(sorted(hit))}")
    flags = {
        name: count
        for name, tree in modules.items()
        if name.split(".")[0] not in ("cli", "__main__")
        and (
            count := sum(
                len(FLAG.findall(n.value))
                for n in ast.walk(tree)
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            )
        )
    }
    print(f"--flags        {sum(flags.values())} in {len(flags)} modules below cli/")


main()

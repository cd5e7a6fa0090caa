"""Running scripts and the code beside studies in this process, and importing what they share."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS, STUDIES = ROOT / "scripts", ROOT / "studies"
COPIES, GROWTH, PROXY, JOINT, DITHERED = (
    STUDIES / name
    for name in (
        *("copies", "growth", "qwen2.5-coder-1.5b-proxy", "qwen2.5-coder-1.5b-joint"),
        "qwen2.5-coder-1.5b-dithered",
    )
)
sys.path += [str(folder) for folder in (SCRIPTS, STUDIES, COPIES, GROWTH, PROXY, JOINT, DITHERED)]


def load_script(file: Path | str) -> Any:
    """A script as a module, by its name in scripts/ or its file; its ``main`` is not called."""
    path = SCRIPTS / file
    name = path.stem
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # a script has no suffix to cache beside
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def run_script(monkeypatch: pytest.MonkeyPatch, file: Path | str, *arguments: str) -> int:
    """What ``main`` of a script returns for a command line."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / file), *arguments])
    return int(load_script(file).main())

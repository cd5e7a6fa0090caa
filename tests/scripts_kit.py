"""Running the study scripts in this process, and importing what they share."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))


def load_script(name: str) -> Any:
    """A script as a module; its ``main`` is not called."""
    loader = SourceFileLoader(name, str(SCRIPTS / name))
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


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> int:
    """What ``main`` of a script returns for a command line."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *arguments])
    return int(load_script(name).main())

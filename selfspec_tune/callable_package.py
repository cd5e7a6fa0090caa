"""Packages that are called by the name of what they do: ``selfspec_tune.search("smollm2-135m")``.

Python binds a package's name in its parent to the package, so a function of the same name could not stay there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """From now on calling the imported ``package`` calls ``function``, whose signature it shows."""
    module = sys.modules[package]
    module.__class__ = type("CallablePackage", (ModuleType,), {"__call__": staticmethod(function)})
    module.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]

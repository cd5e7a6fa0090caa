"""Models: found by name, loaded, taken apart into sub-layers, fingerprinted.

Everything is loaded on first use, so that the alias table can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfspec_tune.models.aliases import ALIASES, Alias
    from selfspec_tune.models.load import load_model
    from selfspec_tune.models.loaded import LoadedModel
    from selfspec_tune.models.sublayers import SubLayers, find_sublayers

__all__ = ["ALIASES", "Alias", "LoadedModel", "SubLayers", "find_sublayers", "load_model"]

_HOMES = {
    "ALIASES": "aliases",
    "Alias": "aliases",
    "LoadedModel": "loaded",
    "SubLayers": "sublayers",
    "find_sublayers": "sublayers",
    "load_model": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

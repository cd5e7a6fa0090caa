"""selfspec-tune: which layers a model may skip while it drafts for itself, and what that is worth.

The names below are the library's public face. Each is loaded on first use, so that
``import selfspec_tune`` costs nothing and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfspec_tune.bench.run import bench
    from selfspec_tune.draft import Draft, DraftPolicy
    from selfspec_tune.draft.skip_set import SkipSet
    from selfspec_tune.engine import autoregressive, choose_runner, self_speculative
    from selfspec_tune.errors import SelfSpecError
    from selfspec_tune.export import export
    from selfspec_tune.model.generation import Generation, Piece
    from selfspec_tune.model.load import load
    from selfspec_tune.model.model import Chat, Model
    from selfspec_tune.model.stream import Stream
    from selfspec_tune.models import LoadedModel, load_model
    from selfspec_tune.prompts import Prompt, load_prompts
    from selfspec_tune.requests import BenchRequest, SearchRequest
    from selfspec_tune.results import BenchResult, SkipConfig
    from selfspec_tune.search.run import SearchOutcome, search

__version__ = "0.1.0"

__all__ = [
    "BenchRequest",
    "BenchResult",
    "Chat",
    "Draft",
    "DraftPolicy",
    "Generation",
    "LoadedModel",
    "Model",
    "Piece",
    "Prompt",
    "SearchOutcome",
    "SearchRequest",
    "SelfSpecError",
    "SkipConfig",
    "SkipSet",
    "Stream",
    "__version__",
    "autoregressive",
    "bench",
    "choose_runner",
    "export",
    "load",
    "load_model",
    "load_prompts",
    "search",
    "self_speculative",
]

_HOMES = {
    "BenchRequest": "requests",
    "BenchResult": "results",
    "Chat": "model.model",
    "Draft": "draft",
    "DraftPolicy": "draft",
    "Generation": "model.generation",
    "LoadedModel": "models",
    "Model": "model.model",
    "Piece": "model.generation",
    "Prompt": "prompts",
    "SearchOutcome": "search.run",
    "SearchRequest": "requests",
    "SelfSpecError": "errors",
    "SkipConfig": "results",
    "SkipSet": "draft.skip_set",
    "Stream": "model.stream",
    "autoregressive": "engine",
    "choose_runner": "engine",
    "load": "model.load",
    "load_model": "models",
    "load_prompts": "prompts",
    "self_speculative": "engine",
}
_CALLABLE = ("bench", "export", "search")  # packages that are called


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

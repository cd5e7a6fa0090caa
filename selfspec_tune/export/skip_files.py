"""Skip sets in other projects' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.dialects import SKIP_CONFIG, Dialect, read_skip_set, to_dialect
from selfspec_tune.errors import UnknownModelError, UsageError
from selfspec_tune.files import read_json
from selfspec_tune.models.aliases import close_aliases, resolve


def export_dialect(source: Path, dialect: Dialect, *, task: str | None = None, model: str | None = None) -> Any:
    """The skip set of ``source``, a skip.json or any dialect's file, as a JSON value in ``dialect``.

    ``model`` names the model in the result; it is needed where ``source`` does not say
    which model, or how deep a model, it is for. ``task`` is needed by dialects that key
    by task. Raises `FileFormatError`, `SkipSetError` or `UnknownModelError`.
    """
    depth = None if model is None else known_num_layers(model)
    skip_set, found = read_skip_set(source, num_layers=depth)
    name = model or _stated_model(source, found)
    return to_dialect(skip_set, dialect, model_name=Path(name).name, task=task)


def known_num_layers(model: str) -> int:
    """A model's depth without loading it: from the alias table or a local ``config.json``.

    Raises `UnknownModelError` for anything else.
    """
    alias = resolve(model)
    if alias is not None:
        return alias.num_layers
    config = Path(model) / "config.json"
    if not config.is_file():
        close = close_aliases(model)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise UnknownModelError(
            f"The depth of {model!r} is not known here; expected an alias that `selfspec-tune models` "
            f"lists, or a local directory with a config.json.{hint}"
        )
    depth = read_json(config).get("num_hidden_layers")
    if not isinstance(depth, int):
        raise UnknownModelError(f"{config} has no num_hidden_layers; expected a decoder-only language model.")
    return depth


def _stated_model(source: Path, dialect: str) -> str:
    model = read_json(source)["model"] if dialect == SKIP_CONFIG else {}
    name = model.get("name") or model.get("id")
    if not name:
        raise UsageError(f"{source} does not say which model it is for; name it with --model.")
    return str(name)

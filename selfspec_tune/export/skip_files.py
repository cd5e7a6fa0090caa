"""Skip sets in other projects' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.dialects import Dialect, read_skip_set, split_key, to_dialect
from selfspec_tune.errors import FileFormatError, UnknownModelError, UsageError
from selfspec_tune.files import read_json, read_settings
from selfspec_tune.models.aliases import close_aliases, resolve
from selfspec_tune.results import SkipConfig
from selfspec_tune.skip_set import MOST_LAYERS


def export_dialect(source: Path, dialect: Dialect, *, task: str | None = None, model: str | None = None) -> Any:
    """The skip set of ``source``, a skip.json or any dialect's file, as a JSON value in ``dialect``.

    ``model`` names the model in the result; it is needed where ``source`` does not say
    which model, or how deep a model, it is for. ``task`` is needed by dialects that key
    by task. Raises `FileFormatError`, `SkipSetError` or `UnknownModelError`.
    """
    depth = None if model is None else known_num_layers(model)
    config = own_config(source)
    skip_set, _ = read_skip_set(source, num_layers=depth)
    name = model or (config and (config.model.name or config.model.id))
    if not name:
        raise UsageError(f"{source} does not say which model it is for; name it with --model.")
    return to_dialect(skip_set, dialect, model_name=Path(name).name, task=task)


def own_config(source: Path) -> SkipConfig | None:
    """The file, where it is a skip.json of ours. Raises `FileFormatError` where there is none, or a damaged one."""
    file = Path(split_key(str(source))[0])
    try:
        value = read_json(file)
    except FileFormatError:
        if not file.is_file():
            raise
        return None  # a dialect that is no JSON, or nothing: its reader says which
    is_own = isinstance(value, dict) and value.get("schema") == SkipConfig.SCHEMA
    return SkipConfig.from_dict(value, origin=str(source)) if is_own else None


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
    depth = read_settings(config).get("num_hidden_layers")
    if type(depth) is not int or not 1 <= depth <= MOST_LAYERS:
        raise UnknownModelError(
            f"{config} has no num_hidden_layers from 1 to {MOST_LAYERS}; expected a decoder-only language model."
        )
    return depth

"""Skip sets in the file formats of other projects, in and out.

| dialect    | written as                                                              |
| ---------- | ----------------------------------------------------------------------- |
| self-sd    | ``{"llama-2-13b": {"attention": [3], "mlp": [6]}}``                     |
| swift      | the same, keyed ``<model>_<task>``                                      |
| knn-ssd    | the same, keyed ``<task>_<model>``                                      |
| conflayers | ``{"<model>_<task>": {"layers": [1, 4]}}``, whole layers                |
| economize  | ``{"skip_layers": [10, 12]}`` or ``skip_layers=(10, 12)``, whole layers |
|            | counted from 1                                                          |
| layerskip  | ``{"exit_layer": 8}``, ``{"assistant_early_exit": 8}`` or ``8``: the    |
|            | first 8 layers draft, the others are skipped                            |
| knapspec   | list of 2 L zeros and ones in running order, 1 = skipped                |

Our own skip.json is read too, as ``skip-config``. Layers count from 0 unless said. Keys of other projects' entries
that are not known here are left alone (they keep scores and notes there); our own ``skip`` object has no others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from selfspec_tune import files
from selfspec_tune.checks import parse_json, shown
from selfspec_tune.draft.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.errors import FileFormatError, SkipSetError

SKIP_CONFIG = "skip-config"
_OWN_SCHEMAS = "selfspec-tune/"
_ENTRY = frozenset({"attention", "mlp", "layers"})
_EXIT_KEYS = ("exit_layer", "assistant_early_exit")
_ECONOMIZE_CALL = re.compile(r"skip_layers\s*=\s*[(\[]([0-9,\s]*)[)\]]")
_MOST_NAMES = 20
_MODEL_SIZE = re.compile(r"\d+(\.\d+)?[bm](?![a-z0-9])", re.IGNORECASE)


class Dialect(StrEnum):
    """The formats of other projects that `to_dialect` writes."""

    SELF_SD = "self-sd"
    SWIFT = "swift"
    KNN_SSD = "knn-ssd"
    CONFLAYERS = "conflayers"
    ECONOMIZE = "economize"
    LAYERSKIP = "layerskip"
    KNAPSPEC = "knapspec"


DIALECTS: tuple[Dialect, ...] = tuple(Dialect)


def read_skip_set(
    path: str | os.PathLike[str], *, num_layers: int | None, key: str | None = None
) -> tuple[SkipSet, str]:
    """The skip set in a file and the dialect it was recognised as.

    Args:
        path: the file, or ``FILE#KEY`` for one entry of a file that holds several.
        num_layers: depth of the model; None only where the file states it itself.
        key: the entry's key, as an alternative to ``#KEY``.

    Raises:
        FileFormatError: missing, corrupt, or in no dialect known here.
        SkipSetError: an entry must be chosen, the depth is missing or does not fit, or a
            layer is out of range.
    """
    file, key = split_key(os.fspath(path), key)
    try:
        return _interpret(_decode(file), num_layers, key, file)
    except SkipSetError as error:
        raise error if file in str(error) else SkipSetError(f"{file}: {error}") from error


def stated_depth(path: str | os.PathLike[str]) -> int | None:
    """How many layers the model has that another project's file is for; None where the file does not say.

    Raises `FileFormatError`: missing or corrupt.
    """
    value = _decode(split_key(os.fspath(path), None)[0])
    return len(value) // 2 or None if isinstance(value, list) else None


def parse_skip_set(text_or_path: str, num_layers: int) -> SkipSet:
    """A skip set from a file in any dialect, if there is such a file, else from the text form."""
    file, _ = split_key(text_or_path, None)
    if os.path.isfile(file):
        return read_skip_set(text_or_path, num_layers=num_layers)[0]
    if file.endswith(".json") or "/" in file:
        raise FileFormatError(f"{file} does not exist. Check the path, or give a form like 'attn 2-9 · mlp 3,5'.")
    return SkipSet.parse(text_or_path, num_layers)


def to_dialect(skip_set: SkipSet, dialect: Dialect | str, *, model_name: str, task: str | None = None) -> Any:
    """``skip_set`` as a JSON value in ``dialect``.

    Raises `SkipSetError` where the dialect cannot say it: an unknown dialect, a missing
    ``task``, or, where only whole layers can be stated, layers of which one sub-layer stays.
    """
    match _known(dialect):
        case Dialect.SELF_SD:
            return {model_name: skip_set.to_dict()}
        case Dialect.SWIFT:
            return {f"{model_name}_{_needed(task, 'swift')}": skip_set.to_dict()}
        case Dialect.KNN_SSD:
            return {f"{_needed(task, 'knn-ssd')}_{model_name}": skip_set.to_dict()}
        case Dialect.CONFLAYERS:
            layers = _whole_layers(skip_set, "conflayers")
            return {f"{model_name}_{_needed(task, 'conflayers')}": {"layers": layers}}
        case Dialect.ECONOMIZE:
            return {"skip_layers": [layer + 1 for layer in _whole_layers(skip_set, "economize")]}
        case Dialect.LAYERSKIP:
            return {"exit_layer": _exit_layer(skip_set)}
        case Dialect.KNAPSPEC:
            return [int(flag) for flag in skip_set.to_flags()]


def split_key(path: str, key: str | None = None) -> tuple[str, str | None]:
    """(file, key) of ``FILE#KEY``; a file whose name holds a # is taken as it is."""
    file, mark, suffix = path.rpartition("#")
    return (file, suffix) if mark and not os.path.exists(path) else (path, key)


def _decode(file: str) -> Any:
    text = files.read_text(file)
    call = _ECONOMIZE_CALL.search(text)
    try:
        return parse_json(text)
    except ValueError as error:
        if call is None:
            raise FileFormatError(f"{file} is not valid JSON ({error}). Is it a skip-set file?") from error
        return {"skip_layers": [_layer_number(number, file) for number in re.findall("[0-9]+", call[1])]}


def _layer_number(digits: str, file: str) -> int:
    if len(digits) > len(str(MOST_LAYERS)):
        raise FileFormatError(f"{file}: layer {shown(digits)}; expected a layer's number.")
    return int(digits)


def _interpret(value: Any, num_layers: int | None, key: str | None, origin: str) -> tuple[SkipSet, str]:
    if isinstance(value, list):
        return _from_flag_list(value, num_layers, origin), Dialect.KNAPSPEC
    if isinstance(value, int) and not isinstance(value, bool):
        return _from_exit_layer(value, num_layers, origin), Dialect.LAYERSKIP
    if not isinstance(value, dict):
        raise _not_understood(origin)
    if str(value.get("schema", "")).startswith(_OWN_SCHEMAS):
        return _from_skip_config(value, num_layers, origin), SKIP_CONFIG
    if "skip_layers" in value:
        return _from_economize(_layers(value, "skip_layers", origin), num_layers, origin), Dialect.ECONOMIZE
    for exit_key in _EXIT_KEYS:
        if exit_key in value:
            return _from_exit_layer(value[exit_key], num_layers, origin), Dialect.LAYERSKIP
    if _is_entry(value):
        return _from_entry(value, num_layers, origin), Dialect.SELF_SD
    name, entry = _choose_entry(value, key, origin)
    dialect = Dialect.CONFLAYERS if "layers" in entry else _dialect_of_key(name)
    return _from_entry(entry, num_layers, f"{origin}#{name}"), dialect


def _from_skip_config(value: dict[str, Any], num_layers: int | None, origin: str) -> SkipSet:
    model, skip = value.get("model"), value.get("skip")
    if not isinstance(model, dict) or not isinstance(skip, dict) or type(model.get("num_layers")) is not int:
        raise FileFormatError(f"{origin} holds no skip set with its model's depth; expected a skip.json.")
    if skip.keys() != {"attention", "mlp"}:
        raise FileFormatError(f"{origin}: skip has the keys {_listed(skip)}; expected attention and mlp.")
    depth: int = model["num_layers"]
    _check_depth(depth, num_layers, origin)
    return _from_entry(skip, depth, origin)


def _from_flag_list(value: list[Any], num_layers: int | None, origin: str) -> SkipSet:
    if not value or len(value) % 2 or any(type(flag) not in (int, bool) or flag not in (0, 1) for flag in value):
        raise FileFormatError(f"{origin} holds a list; expected 2 zeros or ones for each layer.")
    _check_depth(len(value) // 2, num_layers, origin)
    return SkipSet.from_flags([bool(flag) for flag in value])


def _from_exit_layer(value: Any, num_layers: int | None, origin: str) -> SkipSet:
    depth = _needed_depth(num_layers, origin)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= depth:
        raise SkipSetError(f"{origin}: exit layer {shown(value)}; expected 1 to {depth}, the number of layers kept.")
    skipped = tuple(range(value, depth))
    return SkipSet(depth, skipped, skipped)


def _from_economize(layers: tuple[int, ...], num_layers: int | None, origin: str) -> SkipSet:
    depth = _needed_depth(num_layers, origin)
    for layer in layers:
        if not 1 <= layer <= depth:
            raise SkipSetError(f"{origin}: layer {shown(layer)} counted from 1; expected 1 to {depth}.")
    from_zero = tuple(layer - 1 for layer in layers)
    return SkipSet(depth, from_zero, from_zero)


def _from_entry(entry: dict[str, Any], num_layers: int | None, origin: str) -> SkipSet:
    depth = _needed_depth(num_layers, origin)
    named = entry.keys() & _ENTRY
    if named not in ({"layers"}, {"attention", "mlp"}):
        raise FileFormatError(
            f"{origin} has the keys {_listed(entry)}; expected attention and mlp, or layers alone. Add what is "
            "missing, as an empty list where nothing is skipped."
        )
    attention, mlp = (_layers(entry, "layers" if "layers" in named else name, origin) for name in ("attention", "mlp"))
    try:
        return SkipSet(depth, attention, mlp)
    except SkipSetError as error:
        raise SkipSetError(f"{origin}: {error} Correct the file, or name the model that it is for.") from error


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(_ENTRY)


def _choose_entry(value: dict[str, Any], key: str | None, origin: str) -> tuple[str, dict[str, Any]]:
    entries = {name: entry for name, entry in value.items() if _is_entry(entry)}
    if not entries:
        raise _not_understood(origin)
    if key is None and len(entries) > 1:
        raise SkipSetError(
            f"{origin} holds {len(entries)} skip sets; name one, as in '{origin}#{next(iter(entries))}'. "
            f"Keys: {_listed(entries)}."
        )
    name = next(iter(entries)) if key is None else key
    if name not in entries:
        raise SkipSetError(f"{origin} has no skip set {name!r}; keys: {_listed(entries)}.")
    return name, entries[name]


def _dialect_of_key(key: str) -> Dialect:
    """By where in ``a_b`` the model stands: its part tells a size, like 13b or 135m."""
    first, mark, rest = key.partition("_")
    if not mark:
        return Dialect.SELF_SD
    if _MODEL_SIZE.search(first) or not _MODEL_SIZE.search(rest):
        return Dialect.SWIFT
    return Dialect.KNN_SSD


def _layers(entry: dict[str, Any], name: str, origin: str) -> tuple[int, ...]:
    value = entry[name]
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise FileFormatError(f"{origin}: {name} is {shown(value)}; expected a list of layer numbers, such as [3, 7].")
    return tuple(value)


def _needed_depth(num_layers: int | None, origin: str) -> int:
    if num_layers is None:
        raise SkipSetError(f"{origin} does not say how many layers the model has; name it with `model`.")
    return num_layers


def _check_depth(found: int, expected: int | None, origin: str) -> None:
    if expected is not None and found != expected:
        raise SkipSetError(
            f"{origin} is for a model of {found} layers, but this model has {expected}. "
            "Use the model that the set was made for, or search again."
        )


def _listed(names: Iterable[str]) -> str:
    """The first few names of a file."""
    known = list(names)
    return ", ".join(known[:_MOST_NAMES]) + ", …" * (len(known) > _MOST_NAMES) if known else "none"


def _not_understood(origin: str) -> FileFormatError:
    names = ", ".join((SKIP_CONFIG, *DIALECTS))
    return FileFormatError(
        f"{origin} holds no skip set in a form known here ({names}). Expected for example "
        '{"model": {"attention": [3], "mlp": [3, 6]}}.'
    )


def _known(dialect: Dialect | str) -> Dialect:
    try:
        return Dialect(dialect)
    except ValueError as error:
        raise SkipSetError(f"Unknown dialect {dialect!r}; expected one of {', '.join(DIALECTS)}.") from error


def _needed(task: str | None, dialect: str) -> str:
    if task is None:
        raise SkipSetError(f"{dialect} keys its skip sets by model and task; name one with `task`.")
    return task


def _whole_layers(skip_set: SkipSet, dialect: str) -> list[int]:
    split = sorted(set(skip_set.attention) ^ set(skip_set.mlp))
    if split:
        raise SkipSetError(
            f"{dialect} can skip whole layers only, and of layers {', '.join(map(str, split))} "
            "this set skips one sub-layer only. Use a dialect that names sub-layers, such as self-sd."
        )
    return list(skip_set.attention)


def _exit_layer(skip_set: SkipSet) -> int:
    layers = _whole_layers(skip_set, "layerskip")
    exit_layer = skip_set.num_layers - len(layers)
    kept = sorted(set(range(exit_layer, skip_set.num_layers)) - set(layers))
    if kept or exit_layer == 0:
        named = f"layers {', '.join(map(str, kept))} are kept" if kept else "no layer is left to draft with"
        raise SkipSetError(
            f"layerskip skips every layer from one layer on; here {named}, and layers "
            f"{', '.join(map(str, layers))} are skipped. Use a dialect that lists layers."
        )
    return exit_layer

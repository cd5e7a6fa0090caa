"""``selfspec-tune generate``: answers from what a search found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from selfspec_tune.cli import exits, output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.errors import ContextError, PromptError, UsageError
from selfspec_tune.requests import DraftOptions, ModelOptions

if TYPE_CHECKING:
    from selfspec_tune.model.generation import Generation
    from selfspec_tune.model.model import Model
    from selfspec_tune.model.stream import Stream

_SCHEMA, _VERSION = "selfspec-tune/generation", 1


@command("generate")
def generate(asked: Asked) -> None:
    """Answer a prompt, or converse, with the draft that a search found.

    Standard output holds the answer and nothing else. Ctrl-C ends an answer, a second one the program.
    """
    from selfspec_tune.model.generation import AnswerOptions

    sampling = asked.of(AnswerOptions)
    # What means nothing is refused before a model is loaded.
    about_idle = AnswerOptions.of(sampling).about_idle  # type: ignore[arg-type]
    text = _prompt(asked["prompt"], asked["prompt_file"])
    if asked["show_drafts"] and not _is_terminal(sys.stdout):
        raise UsageError("--show-drafts colours a terminal, and standard output is none. Leave it out.")
    if asked["json"] and text is None:
        raise UsageError("--json prints one answer: give --prompt, --prompt-file or standard input.")
    loading = asked.of(ModelOptions, DraftOptions) | asked.given("template")
    loaded = _load(asked["source"], loading, quiet=asked["quiet"])
    if about_idle and not asked["quiet"]:
        output.say(f"note: {about_idle}", to_errors=True)
    shown = _Shown(loaded, sampling, **{name: asked[name] for name in ("show_drafts", "compare", "quiet")})
    system = asked["system"]
    if text is None:
        _converse(loaded, shown, system)
    else:
        turns = [{"role": "system", "content": system}] if system is not None else []
        _answer(loaded, shown, [*turns, {"role": "user", "content": text}] if turns else text, json=asked["json"])


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    """What to answer; None for a conversation. Raises `UsageError` where there is neither a text nor a terminal."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file are both given. Leave one of them out.")
    if file is not None:
        from selfspec_tune.files import read_text

        text = read_text(file).removesuffix("\n")
    elif prompt is not None:
        text = prompt
    elif _is_terminal(sys.stdin):
        if not _is_terminal(sys.stdout):
            raise UsageError("There is no prompt: give --prompt or --prompt-file, or pipe a text into the command.")
        return None
    else:
        text = _standard_input().removesuffix("\n")
    if not text.strip():
        raise UsageError("The prompt is empty: give --prompt or --prompt-file, or pipe a text into the command.")
    return text


def _standard_input() -> str:
    try:
        return "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is no {error.encoding} text. Convert it, or give --prompt-file.") from error


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _load(source: str | None, given_options: dict[str, Any], *, quiet: bool) -> Model:
    from selfspec_tune.model.load import load

    with output.progress(quiet=quiet) as reporter:
        reporter.stage("load", source or str(given_options.get("model") or "the newest study"))
        model = load(source, **given_options, notice=reporter.notice)
        reporter.notice(model.describe())
    return model


class _Shown:
    """How answers are decoded and shown."""

    def __init__(
        self, model: Model, sampling: dict[str, Any], *, show_drafts: bool, compare: bool, quiet: bool
    ) -> None:
        self.sampling = sampling
        self._model = model
        self._show_drafts = show_drafts
        self._compare = compare
        self._quiet = quiet
        self._console = output.SafeConsole(highlight=False) if _is_terminal(sys.stdout) else None

    def explain(self) -> None:
        """Say what the colours mean."""
        from selfspec_tune.report.answer import legend

        if self._show_drafts and self._console is not None and not self._quiet:
            for name, style in legend(self._model.draft):
                self._console.out(name, style=style, end="", highlight=False)
                self._console.out("  ", end="", highlight=False)
            self._console.print()

    def read(self, begin: Callable[[], Stream], *, is_streamed: bool = True) -> Generation:
        """Print an answer as it comes; Ctrl-C ends it."""
        with exits.gently() as is_interrupted:
            stream = begin()
            for piece in stream:
                if is_streamed:
                    self._print(piece.text, *self._drafted(piece))
                if is_interrupted():
                    stream.close()
        if is_streamed and self._console is not None:
            self._console.print()
        return stream.generation

    def _drafted(self, piece: Any) -> tuple[str, str]:
        from selfspec_tune.report.answer import style_of

        if not self._show_drafts:
            return "", ""
        return style_of(piece.source, self._model.draft), self._model.text_of(piece.rejected)

    def _print(self, text: str, style: str, rejected: str) -> None:
        if self._console is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        from selfspec_tune.report.answer import REJECTED

        self._console.out(text, style=style or None, end="", highlight=False)
        if rejected:  # whose line ends are none of the text's
            self._console.out(rejected.replace("\n", "↵"), style=REJECTED, end="", highlight=False)

    def compared(self, answer: Generation, prompt: Any) -> Generation:
        """The answer with what plain decoding takes for it, where that is asked for."""
        if not self._compare or answer.finish_reason == "interrupted":
            return answer
        return replace(answer, plain=self._model.plainly(prompt, answer, **{**self.sampling, "seed": answer.seed}))

    def sum_up(self, answer: Generation) -> None:
        """The footer, on standard error."""
        from selfspec_tune.report.answer import comparison, footer

        if not self._quiet:
            output.say(f"[{footer(answer, self._model.draft)}]", to_errors=True)
        if answer.plain is not None:
            output.say(f"[{comparison(answer)}]", to_errors=True)


def _answer(model: Model, shown: _Shown, prompt: Any, *, json: bool) -> None:
    """One answer, whose whole text goes to standard output untouched, or one JSON object."""
    answer = shown.read(partial(model.stream, prompt, **shown.sampling), is_streamed=not json)
    answer = shown.compared(answer, prompt)
    if json:
        draft = None if model.draft is None else model.draft.describe()
        about = {"model": model.name, "runner": model.runner, "draft": draft, "notes": list(model.notes)}
        output.print_json({"schema": _SCHEMA, "version": _VERSION, **about, **answer.to_dict()})
    else:
        shown.sum_up(answer)
    if answer.finish_reason == "interrupted":
        raise typer.Exit(exits.INTERRUPTED)


def _converse(model: Model, shown: _Shown, system: str | None) -> None:
    """Turn by turn until the end of standard input."""
    line = _LineEditor()
    shown.explain()
    chat = model.chat(system)
    while (said := line.read()) is not None:
        if not said.strip():
            continue
        begin = partial(chat.stream, said, **shown.sampling)
        try:
            answer = shown.read(begin)
        except ContextError as error:
            kept = " What was typed stands in the line again." if line.offer(said) else ""
            output.say(f"note: {error} A new one begins here.{kept}", to_errors=True)
            chat = model.chat(system)
            continue
        except PromptError as error:  # of what was typed just now
            output.say(f"note: {error}", to_errors=True)
            continue
        shown.sum_up(shown.compared(answer, chat.messages[:-1]))


class _LineEditor:
    """Reads what is said; where the system has readline, with the arrow keys and what was said before."""

    def __init__(self) -> None:
        self._readline: Any = None
        with suppress(ImportError):
            self._readline = import_module("readline")

    def read(self) -> str | None:
        """What is said next; None at the end."""
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        finally:
            if self._readline is not None:
                self._readline.set_startup_hook()

    def offer(self, text: str) -> bool:
        """Put ``text`` into the next line, to be changed or sent; False where that cannot be."""
        if self._readline is None:
            return False
        self._readline.set_startup_hook(lambda: self._readline.insert_text(text))
        return True

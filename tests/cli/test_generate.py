"""``generate``: text untouched to a pipe, a conversation in a terminal, and an end that is quiet whatever ends it."""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import selfspec_tune as st
from selfspec_tune.cli import exits
from selfspec_tune.cli.app import app
from selfspec_tune.cli.generate import generate
from selfspec_tune.results import ModelInfo, SkipLayers
from tests import kit
from tests.results_kit import skip_config

PROMPT = "on and on and on and on"
SECONDS = 60  # until a process that hangs is a failure


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny_llama(tmp_path_factory.mktemp("chatty"), chat=True)


@pytest.fixture(scope="module")
def study(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a skip.json of the tiny model: skips, copies and lookup."""
    loaded = st.load_model(str(chatty), dtype="float32", device="cpu")
    draft = {"policy": "fixed", "max_draft_tokens": 3, "exit_threshold": 0.6, "precision": {"int8": {"mlp": [3]}}}
    config = skip_config(
        model=ModelInfo.model_validate(loaded.describe()),
        skip=SkipLayers(attention=[1], mlp=[2]),
        draft=type(skip_config().draft).model_validate(draft | {"ngram": {"min_match": 1, "max_tokens": 4}}),
    )
    folder = tmp_path_factory.mktemp("study")
    config.save(folder / "skip.json")
    return folder


@pytest.fixture(scope="module")
def expected(study: Path) -> st.Generation:
    return st.load(study, runner="fast").generate(PROMPT, max_new_tokens=24)


def run(*arguments: str | Path, text: str | bytes | None = None) -> Result:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["generate", *map(str, arguments)], input=text)


def answer(study: Path, *arguments: str | Path, text: str | None = None) -> Result:
    result = run(study, "--runner", "fast", "--max-new-tokens", "24", *arguments, text=text)
    assert result.exit_code == 0, result.output
    return result


# -- to a pipe ------------------------------------------------------------------------------------------------------


def test_standard_output_is_the_text_alone(study: Path, expected: st.Generation) -> None:
    Path("prompt.txt").write_text(f"{PROMPT}\n")
    said = [
        answer(study, "--prompt", PROMPT),
        answer(study, "--prompt-file", "prompt.txt"),
        answer(study, text=f"{PROMPT}\n"),
    ]
    assert [result.stdout for result in said] == [expected.text] * 3
    assert "fast runner: drafts: skip attn 1 · mlp 2" in said[0].stderr
    drafted = f"{expected.accepted} of {expected.drafted} drafted tokens accepted"
    assert drafted in said[0].stderr
    assert "lookup" in said[0].stderr
    assert "skip and copies" in said[0].stderr
    assert answer(study, "--prompt", PROMPT, "--quiet").stderr == ""


def test_json_is_one_object_with_what_plain_decoding_took(study: Path, expected: st.Generation) -> None:
    found = json.loads(answer(study, "--prompt", PROMPT, "--json", "--compare").stdout)
    assert (found["schema"], found["text"], found["tokens"]) == (
        "selfspec-tune/generation",
        expected.text,
        list(expected.tokens),
    )
    assert found["plain"]["text"] == expected.text
    assert found["same_text"] is True
    assert found["speedup"] > 0


def test_what_has_no_effect_where_decoding_is_greedy_is_said(study: Path) -> None:
    assert "note: --top-p 0.5: without effect" in answer(study, "--prompt", PROMPT, "--top-p", "0.5").stderr
    assert "without effect" not in answer(study, "--prompt", PROMPT, "--repetition-penalty", "1.1").stderr


def test_sampling_options_mean_what_they_mean_in_python(study: Path) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 3}
    options |= {"repetition_penalty": 1.2, "stop": ["e"]}
    typed = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    typed[-1] = "e"
    found = answer(study, "--prompt", PROMPT, "--no-ngram", "--policy", "threshold", "--max-draft-tokens", "2", *typed)
    model = st.load(study, runner="fast", ngram=False, policy="threshold", max_draft_tokens=2)
    assert found.stdout == model.generate(PROMPT, max_new_tokens=24, **options).text  # type: ignore[call-overload]
    assert "e" not in found.stdout


def test_the_ratio_is_printed(study: Path) -> None:
    said = answer(study, "--prompt", PROMPT, "--compare").stderr
    assert "the same text; decode " in said
    assert "× as fast, end to end " in said


# -- in a terminal ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Runs the command in a terminal where these lines are typed; what it printed, and its standard error."""

    def talk(*lines: str, **options: Any) -> tuple[str, str]:
        out, errors, typed = Terminal(), io.StringIO(), iter(lines)

        def read(prompt: str) -> str:
            out.write(prompt)
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(builtins, "input", read)
        for name, stream in (("stdin", Terminal()), ("stdout", out), ("stderr", errors)):
            monkeypatch.setattr(sys, name, stream)
        generate(**options)
        return out.getvalue(), errors.getvalue()

    return talk


def test_a_terminal_gets_a_conversation(study: Path, terminal: Callable[..., tuple[str, str]]) -> None:
    said, errors = terminal("the sun", "", "and then?", source=str(study), runner="fast", max_new_tokens=12)
    chat = st.load(study, runner="fast").chat()
    answers = [chat.send(text, max_new_tokens=12).text for text in ("the sun", "and then?")]
    assert said == f"> {answers[0]}\n> > {answers[1]}\n> \n"
    assert errors.count("tokens/s") == 2


def test_accepted_drafts_are_coloured_and_rejected_ones_struck(
    study: Path, expected: st.Generation, terminal: Callable[..., tuple[str, str]]
) -> None:
    said, _ = terminal(
        source=str(study), prompt=PROMPT, runner="fast", max_new_tokens=24, show_drafts=True, ngram=True, quiet=True
    )
    styles = {"skip and copies": "\x1b[33m", "lookup": "\x1b[36m", "struck": "\x1b[9;31m"}
    assert all(style in said for style in styles.values())
    kept = "".join(part.split("\x1b[0m", 1)[1] for part in ("\x1b[0m" + said).split("\x1b[9;31m"))
    for style in [*styles.values(), "\x1b[0m"]:
        kept = kept.replace(style, "")
    assert kept == f"{expected.text}\n"


def test_a_conversation_that_fills_the_context_begins_anew(
    study: Path, terminal: Callable[..., tuple[str, str]]
) -> None:
    said, errors = terminal("z" * 2000, "the sun", source=str(study), runner="fast", max_new_tokens=4)
    assert "A new one begins here." in errors
    assert said.count(">") >= 3


def test_what_was_typed_to_a_conversation_that_is_full_stands_in_the_line_again(
    study: Path, terminal: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: list[Callable[[], None] | None] = []
    offered: list[str] = []
    readline = SimpleNamespace(set_startup_hook=lambda hook=None: hooks.append(hook), insert_text=offered.append)
    monkeypatch.setitem(sys.modules, "readline", readline)
    long = "z" * 500
    _, errors = terminal(long, long, "the sun", source=str(study), runner="fast", max_new_tokens=600)
    assert errors.count("What was typed stands in the line again.") == 1
    (hook,) = [hook for hook in hooks if hook is not None]
    hook()
    assert offered == [long]
    assert hooks[-1] is None  # the line after it begins empty


def test_what_no_tokenizer_reads_does_not_end_a_conversation(
    study: Path, terminal: Callable[..., tuple[str, str]]
) -> None:
    said, errors = terminal("a \udcff", "the sun", source=str(study), runner="fast", max_new_tokens=12)
    assert "note: The prompt holds '\\udcff'" in errors
    assert said == f"> > {st.load(study, runner='fast').chat().send('the sun', max_new_tokens=12).text}\n> \n"


# -- how it ends ------------------------------------------------------------------------------------------------------

SCRIPTED = """
import sys, time
from types import SimpleNamespace
from selfspec_tune.cli import app
from selfspec_tune.cli import generate
from selfspec_tune.model.generation import Generation
from selfspec_tune.model.generation import Piece

class Stream:
    def __init__(self):
        self.pieces = self.read()
        self.said = ""
        self.reason = "length"
    def read(self):
        try:
            for number in range(10_000):
                time.sleep(0.005)
                self.said += f"{number}\\n"
                yield Piece(f"{number}\\n", (number,))
        except GeneratorExit:
            self.reason = "interrupted"
            raise
    def __iter__(self):
        return self.pieces
    def close(self):
        self.pieces.close()
    @property
    def generation(self):
        return Generation(self.said, (1, 2), 1, 1, (), 0.1, 0.1, self.reason, 0)

class Model:
    name = runner = "scripted"
    notes = ()
    draft = None
    def stream(self, prompt, **options):
        return Stream()
    def chat(self, system):
        return SimpleNamespace(stream=lambda said, **options: Stream(), messages=[])

generate._load = lambda *arguments, **options: Model()
generate._is_terminal = lambda stream: CHATS
print("ready", file=sys.stderr, flush=True)
app.main()
"""


@contextmanager
def running(*arguments: str, chats: bool = False) -> Iterator[subprocess.Popen[str]]:
    code = SCRIPTED.replace("CHATS", str(chats))
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"},
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def test_a_pipe_that_is_closed_ends_it_quietly() -> None:
    with running("--prompt", "count") as process:
        assert lines_of(process, 2) == ["0\n", "1\n"]
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait(SECONDS)
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_answer_and_keeps_what_came() -> None:
    with running("--prompt", "count") as process:
        came = lines_of(process, 3)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        assert "".join([*came, out]).startswith("0\n1\n2\n")
        assert "interrupted]" in errors
        assert "Traceback" not in errors


def test_ctrl_c_in_a_conversation_ends_an_answer_and_then_the_program() -> None:
    with running(chats=True) as process:
        assert process.stdin is not None
        process.stdin.write("count\n")
        process.stdin.flush()
        lines_of(process, 3)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "interrupted]" in process.stderr.readline()
        process.stdin.write("again\n")
        process.stdin.flush()
        while not lines_of(process, 1)[0].startswith("> "):  # the prompt, and the next answer's first line
            pass
        process.send_signal(signal.SIGINT)
        assert "interrupted]" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


def test_a_signal_that_the_caller_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exits.gently() as is_interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not is_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# -- bad inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--temprature", "1"], None, "No such option"),
        (["--temperature", "-1", "--prompt", "a"], None, "temperature -1.0: expected 0 to 100"),
        (["--min-p", "2", "--prompt", "a"], None, "--min-p 2.0: expected"),
        (["--stop", "", "--prompt", "a"], None, "--stop '': expected texts of one character or more"),
        (["--prompt", "a", "--prompt-file", "b"], None, "both given"),
        (["--prompt-file", "nowhere.txt"], None, "nowhere.txt does not exist"),
        ([], "", "The prompt is empty"),
        ([], b"\xff\xfe\xfa", "no utf-8 text"),
        (["--prompt", " "], None, "The prompt is empty"),
        (["--prompt", "a \udcff"], None, "a byte that is no UTF-8"),
        (["--prompt", "a", "--show-drafts"], None, "standard output is none"),
        (["--prompt", "z" * 2000], None, "and the model's context 1024"),
        (["--prompt", "a", "--policy", "cost-aware", "--exit-threshold", "0.5"], None, "has no threshold"),
    ],
)
def test_what_means_nothing_is_refused(
    study: Path, arguments: list[str], text: str | bytes | None, message: str
) -> None:
    result = run(study, *arguments, text=text)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_study_that_never_finished_is_refused() -> None:
    Path("study").mkdir()
    Path("study/study.toml").touch()
    result = run("study", "--prompt", "a")
    assert (result.exit_code, "has come to no result yet" in result.stderr) == (2, True)


def test_without_a_terminal_there_must_be_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    with pytest.raises(typer.Exit):
        generate()
    assert "There is no prompt: give --prompt or --prompt-file" in errors.getvalue()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(typer.Exit):
        generate()
    assert "The prompt is empty" in errors.getvalue()

"""Draws what a command really shows in a terminal of 100 columns, as SVG.

    python docs/capture.py docs/pictures/search.svg -- search --model smollm2-135m --timeout 8m --out studies/captured

runs ``selfspec-tune`` with what stands after ``--`` in a terminal of its own, and draws that as it is at the end.
``--live F.svg --when PATTERN`` also draws the last moment at which a line of the terminal matched that regular
expression (by default the time left of a stage).
``--type LINE``, repeatable, is typed where the program waits behind ``>``, as a chat does; then the input ends.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import shlex
import struct
import sys
import termios
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, ROWS = 100, 120
_ASKS = ">"
_END_OF_INPUT = "\x04"
_SECONDS_OF_SILENCE = 0.5
_NAMES = {"brown": "yellow"}  # pyte's word for the fourth colour
# rich's own, without the font that it would fetch from elsewhere.
_SVG = re.sub(r"@font-face {{.*?}}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="F.svg")
    parser.add_argument("--live", type=Path, metavar="F.svg")
    parser.add_argument("--when", metavar="PATTERN", type=re.compile, default=re.compile("left$"))
    parser.add_argument("--type", action="append", default=[], metavar="LINE")
    parser.add_argument("command", nargs="+", metavar="ARGUMENT")
    arguments = parser.parse_args()

    screen = pyte.Screen(COLUMNS, ROWS)
    moment: list[Text] = []
    stream = pyte.ByteStream(screen)
    process, terminal = _start(arguments.command)
    lines = [*(f"{line}\n" for line in arguments.type), _END_OF_INPUT] if arguments.type else []
    while True:
        if not select.select([terminal], [], [], _SECONDS_OF_SILENCE if lines else None)[0]:
            if screen.display[screen.cursor.y].rstrip() == _ASKS:
                os.write(terminal, lines.pop(0).encode())
            continue
        try:
            stream.feed(os.read(terminal, 65536))
        except OSError:  # the program has closed its end
            break
        if arguments.live is not None and any(arguments.when.search(line) for line in screen.display):
            moment = _lines(screen)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    title = f"selfspec-tune {shlex.join(arguments.command)}"
    _draw(arguments.out, title, _lines(screen))
    if moment:
        _draw(arguments.live, title, moment)
    return status


def _start(command: list[str]) -> tuple[int, int]:
    """The process, and our end of its terminal."""
    process, terminal = pty.fork()
    if process == 0:
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, size)
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvp(sys.executable, [sys.executable, "-m", "selfspec_tune", *command])
    return process, terminal


def _lines(screen: pyte.Screen) -> list[Text]:
    """What the screen shows, without the empty lines at its end."""
    lines = []
    for row in range(ROWS):
        line = Text()
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        for style, alike in groupby(cells, key=_style):
            line.append("".join(cell.data for cell in alike), style)
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_color(cell.fg),
        bgcolor=_color(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        strike=cell.strikethrough,
        reverse=cell.reverse,
    )


def _color(name: str) -> Color | None:
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return Color.parse(f"#{name}")
    bright = name.startswith("bright")
    plain = name.removeprefix("bright")
    return Color.parse(("bright_" if bright else "") + _NAMES.get(plain, plain))


def _draw(out: Path, title: str, lines: list[Text]) -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=True, crop=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(out), title=title, code_format=_SVG)
    print(f"Drawn to {out}.")


if __name__ == "__main__":
    sys.exit(main())

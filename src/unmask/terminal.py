"""Where a chat is led: whether somebody sits at a terminal, what is typed or piped there, Ctrl-C while it answers.

In:  standard input.  Out: messages, one after another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from unmask.config import UserError

PROMPT, MORE, QUOTES = "> ", "… ", '"""'


def is_terminal() -> bool:
    """Whether somebody sits there: else plain text goes out, a line is a question, and nothing is drawn."""
    streams = (sys.stdin, sys.stdout)
    return all(s is not None and s.isatty() for s in streams) and os.environ.get("TERM") != "dumb"


class Questions:
    """Messages as they are typed or piped; EOFError when there are no more."""

    def __init__(self, terminal: bool) -> None:
        if sys.stdin is None:
            raise UserError('standard input is closed; type -p "question".')
        self.terminal = terminal
        for stream in (sys.stdin, sys.stdout):
            if hasattr(stream, "reconfigure"):  # a wrong byte must not end the chat
                stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
        if terminal:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline

                # Python turns it off for its own prompt's sake (bpo-42819); with it, pasted lines are one message.
                readline.parse_and_bind("set enable-bracketed-paste on")

    def next(self) -> tuple[str, bool]:
        """A message, and whether it stood in quotes, so that it is no command."""
        text = self._line(PROMPT)
        quoted = text.lstrip().startswith(QUOTES)
        if quoted:
            text = text.lstrip().removeprefix(QUOTES)
        try:
            while quoted and not text.rstrip().endswith(QUOTES):
                text += "\n" + self._line(MORE)
            while not quoted and (len(text) - len(text.rstrip("\\"))) % 2:
                text = text[:-1] + "\n"
                text += self._line(MORE)
        except EOFError:
            pass  # what there is, is the message
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            print()
            return "", False
        if quoted:
            text = text.rstrip().removesuffix(QUOTES)
        return self._checked(text.strip("\n")), quoted

    def _line(self, prompt: str) -> str:
        if self.terminal:
            return input(prompt)
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except (ValueError, OSError):  # closed meanwhile
            line = ""
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    @staticmethod
    def _checked(text: str) -> str:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError("that is not UTF-8 text, so it is not sent.")
        return text


class Interrupts:
    """While an answer is written: counts Ctrl-C, and keeps what is typed meanwhile off the screen.

    The first Ctrl-C raises KeyboardInterrupt; further ones wait until the screen has been put in order.
    """

    def __enter__(self) -> Interrupts:
        self.count = 0
        self.restore = _no_echo()
        self.before = signal.signal(signal.SIGINT, self.pressed)
        return self

    def pressed(self, *_: Any) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.before)
        self.restore()


def _no_echo() -> Callable[[], None]:
    """Turn the terminal's echo off, if there is one; returns what turns it on again."""
    try:
        import termios
    except ImportError:  # Windows
        return lambda: None
    try:
        place = sys.stdin.fileno()
        if os.tcgetpgrp(place) != os.getpgrp():
            return lambda: None  # in the background, where changing the terminal stops a process
        before = termios.tcgetattr(place)
        quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(place, termios.TCSANOW, quiet)
    except (AttributeError, OSError, ValueError, termios.error):  # no terminal
        return lambda: None
    return lambda: termios.tcsetattr(place, termios.TCSANOW, before)

"""Where a chat is typed and shown: a terminal with line editing, or a pipe with a message a line."""

from __future__ import annotations

import io
import re
import signal
import sys
from typing import NoReturn

from tfgpt.common.errors import TfgptError, UserError
from tfgpt.conversation.chat_session import ChatSession

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that move a terminal's cursor, colour it or worse: nothing that a model writes may do that."""


class TerminalUI:
    """A person's terminal.

    prompt_toolkit edits the line: it knows how wide characters are, takes pasted lines as one message, and keeps no
    history on disk.
    """

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self.prompt: PromptSession[str] = PromptSession(
            [("bold ansicyan", "> ")], key_bindings=keys, prompt_continuation="  "
        )

    def read(self) -> str:
        """What the person types next; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        return self.prompt.prompt()

    def note(self, text: str) -> None:
        """A dim line."""
        print(f"\x1b[2m{CONTROL.sub('�', text)}\x1b[0m", flush=True)

    def write(self, text: str) -> None:
        """A part of the reply, at once."""
        print(CONTROL.sub("�", text), end="", flush=True)

    def end_reply(self) -> None:
        """A line break."""
        print(flush=True)


class StandardOutputUI:
    """Standard output for replies alone; everything else goes to standard error."""

    def note(self, text: str) -> None:
        """A line on standard error."""
        print(text, file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """A part of the reply, at once."""
        print(text, end="", flush=True)

    def end_reply(self) -> None:
        """A line break."""
        print(flush=True)


def use_utf8() -> None:
    """Whatever the locale: a text may have any character."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")


def is_terminal() -> bool:
    """Whether a person types and sees it."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def talk(session: ChatSession, screen: TerminalUI) -> None:
    """A chat with a person, until Ctrl-D or /quit. What cannot be done is said, and the chat goes on."""
    signal.signal(signal.SIGTERM, leave)
    while True:
        try:
            if not session.take(screen.read()):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("Ctrl-D or /quit ends the chat")
        except TfgptError as error:
            screen.note(str(error))


def answer_lines(session: ChatSession) -> None:
    """Answers standard input line by line.

    Raises:
        UserError: a line cannot be done; it is named, and nothing behind it is read.
    """
    for number, line in enumerate(sys.stdin, 1):
        try:
            if not session.take(line.removesuffix("\n").removesuffix("\r")):
                return
        except UserError as error:
            raise UserError(f"standard input, line {number}: {error}") from error


def leave(*_: object) -> NoReturn:
    """SIGTERM at the prompt: an end that gives the terminal back as it was."""
    sys.exit(128 + signal.SIGTERM)

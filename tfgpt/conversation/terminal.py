"""The chat's display: a terminal with line editing, or a pipe with one message per line."""

from __future__ import annotations

import io
import re
import signal
import sys
from typing import TYPE_CHECKING

from tfgpt.common.errors import TfgptError, UserError
from tfgpt.conversation.chat_session import ChatSession, ChatUI
from tfgpt.conversation.config import ChatSamplingConfig
from tfgpt.conversation.conversation import Conversation

if TYPE_CHECKING:
    from tfgpt.generation.generator import Generator

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that control a terminal, which the model's text must not do."""


def run_chat(generator: Generator, sampling: ChatSamplingConfig, conversation: Conversation, title: str) -> None:
    """Chats at a terminal, or replies to the lines of a pipe; a wrong line of a pipe raises a UserError."""
    # In every locale, because a text may contain any character.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        session = ChatSession(generator, sampling, conversation, ChatUI())
        for number, line in enumerate(sys.stdin, 1):
            try:
                if not session.handle_line(line.removesuffix("\n").removesuffix("\r")):
                    return
            except UserError as error:
                raise UserError(f"standard input, line {number}: {error}") from error
        return
    ui = TerminalUI()
    session = ChatSession(generator, sampling, conversation, ui)
    ui.info(f"{title}, reads {generator.context} tokens; /help lists commands, Ctrl-D ends")
    for line in session.transcript():
        ui.info(line)
    # Exits from the prompt restore the terminal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    while True:
        try:
            if not session.handle_line(ui.prompt.prompt()):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            ui.info("Ctrl-D or /quit ends the chat")
        except TfgptError as error:
            ui.info(str(error))


class TerminalUI(ChatUI):
    """A terminal. prompt_toolkit edits lines: wide characters, pasted text as one message, no history on disk."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def insert_line_break(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self.prompt: PromptSession[str] = PromptSession(
            [("bold ansicyan", "> ")], key_bindings=keys, prompt_continuation="  "
        )

    def info(self, text: str) -> None:
        print(f"\x1b[2m{CONTROL.sub('�', text)}\x1b[0m", flush=True)

    def write(self, text: str) -> None:
        super().write(CONTROL.sub("�", text))

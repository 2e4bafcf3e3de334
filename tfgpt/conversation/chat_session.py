"""A chat, line by line: a line is a message to reply to, or a command that begins with a slash."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.settings import plain_type
from tfgpt.conversation.config import ChatSamplingConfig
from tfgpt.conversation.conversation import Conversation, Message, truncate_messages
from tfgpt.corpus.sources.base import message_text
from tfgpt.generation.prompts import check_utf8, encode

if TYPE_CHECKING:
    from tfgpt.generation.generator import Generator

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop", "seed")
"""Settings that /set changes."""

COMMANDS = ("help", "reset", "system", "regenerate", "set", "save", "load", "quit")

HELP = f"""\
/help                 show this help
/reset                clear the conversation except the system message
/system TEXT          set the system message; /system - removes it
/system               show the system message
/regenerate           generate another reply to your last message
/set NAME VALUE       {" ".join(SETTINGS[:5])}
                      {" ".join(SETTINGS[5:])}
/set                  show the settings
/save FILE.jsonl      save the conversation as a line of a file for train
/load FILE.jsonl [N]  continue the file's last conversation, or line N's
/quit                 end the chat, as Ctrl-D does
Begin a message with // if it begins with a slash. Ctrl-C stops a reply;
Alt-Enter begins a new line."""


class ChatUI:
    """The display of a chat: replies on standard output, all other text on standard error."""

    def info(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        print(text, end="", flush=True)


class ChatSession:
    """A conversation with a model."""

    def __init__(self, generator: Generator, sampling: ChatSamplingConfig, conversation: Conversation, ui: ChatUI):
        self.generator, self.sampling, self.conversation, self.ui = generator, sampling, conversation, ui
        self.regenerations = 0

    def handle_line(self, line: str) -> bool:
        """Replies to a message or runs a command; returns False if the chat ends.

        Raises:
            UserError: the line is wrong; the conversation has not changed.
        """
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            text = check_utf8(line.removeprefix("/"), "the message")
            self.regenerations = 0
            self.reply([*self.conversation.messages, {"role": "user", "content": text}])
            return True
        name, _, argument = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            near = did_you_mean(name, COMMANDS, "/")
            raise UserError(f"/{name}: no such command{near}; /help lists them, a message begins with //")
        if name != "quit":
            getattr(self, f"do_{name}")(argument.strip())
        return name != "quit"

    def reply(self, messages: list[Message]) -> None:
        """Generates a reply to messages, which become the conversation together with it."""
        ids, num_dropped = self._prompt(messages)
        if num_dropped:
            self.ui.info(f"the model no longer reads the first {num_dropped} messages: they and a reply do not fit")
        # Another reply to the same message has another seed, in 64 bits.
        seed = (self.sampling.seed + self.regenerations + 2**63) % 2**64 - 2**63
        text, completion = "", None
        with interrupt_event() as interrupted:
            for chunk in self.generator.stream(ids, dataclasses.replace(self.sampling, seed=seed)):
                text += chunk.text
                self.ui.write(chunk.text)
                completion = chunk.completion
                if interrupted.is_set():
                    break
        self.ui.write("\n")
        if completion is None and not text.strip():
            self.ui.info("stopped before the reply; your message is not kept")
            return
        self.conversation.messages = [*messages, {"role": "assistant", "content": text}]
        if completion is None:
            self.ui.info("stopped; the text so far is kept")
        elif completion.finish_reason == "length":
            self.ui.info(f"cut at {self.sampling.max_new_tokens} tokens; /set max_new_tokens NUMBER changes that")
        elif not completion.text:
            self.ui.info("the model ended its turn without text")

    def transcript(self) -> Iterator[str]:
        """Yields the messages of the conversation as text."""
        for message in self.conversation.messages:
            yield f"{message['role']}: {message_text(message)}"

    def _prompt(self, messages: list[Message]) -> tuple[np.ndarray, int]:
        """Returns the ids that the model reads and the number of dropped messages."""
        context = self.generator.context

        def encode_part(part: list[Message]) -> np.ndarray:
            return encode(self.generator.tokenizer, part, self.sampling.add_end_of_text, self.conversation.tools)

        # Leaves room for the whole reply, at most half of the context.
        room = context - min(self.sampling.max_new_tokens, context // 2)
        part, num_dropped = truncate_messages(messages, lambda part: len(encode_part(part)), room)
        ids = encode_part(part)
        if len(ids) > context:
            system = " with the system message" if part[0]["role"] == "system" else ""
            raise UserError(f"the message has {len(ids)} tokens{system}, the model reads at most {context}; shorten it")
        return ids, num_dropped

    def do_help(self, argument: str) -> None:
        self.ui.info(HELP)

    def do_reset(self, argument: str) -> None:
        self.conversation.reset()
        self.ui.info("a new conversation")

    def do_system(self, argument: str) -> None:
        if argument:
            text = check_utf8(argument, "the system message")
            self.conversation.set_system(None if text == "-" else text)
        system = self.conversation.system
        self.ui.info("no system message" if system is None else f"the system message: {system}")

    def do_regenerate(self, argument: str) -> None:
        messages = self.conversation.messages
        if not messages or messages[-1]["role"] == "system":
            raise UserError("/regenerate: there is no message yet")
        self.regenerations += 1
        self.reply(messages[:-1] if messages[-1]["role"] == "assistant" else messages)

    def do_set(self, argument: str) -> None:
        if argument:
            name, _, value = argument.replace("=", " ", 1).partition(" ")
            self.sampling = with_setting(self.sampling, name, value.strip())
        values = {name: getattr(self.sampling, name) for name in SETTINGS}
        values["stop"] = " ".join(self.sampling.stop) or "none"
        self.ui.info("  ".join(f"{name} {value}" for name, value in values.items()))

    def do_save(self, argument: str) -> None:
        if not argument and not self.conversation.location:
            raise UserError("/save: give a file, such as /save chats.jsonl")
        path = Path(argument).expanduser() if argument else self.conversation.location[0]  # type: ignore[index]
        self.ui.info(f"saved as line {self.conversation.save(path)} of {path}")

    def do_load(self, argument: str) -> None:
        name, _, number = argument.rpartition(" ")
        if not (name and number.isdecimal()):
            name, number = argument, ""
        if not name:
            raise UserError("/load: give a file, such as /load chats.jsonl")
        self.conversation = Conversation.load(Path(name).expanduser(), int(number) if number else None)
        self.regenerations = 0
        for line in self.transcript():
            self.ui.info(line)


def with_setting(sampling: ChatSamplingConfig, name: str, text: str) -> ChatSamplingConfig:
    if name not in SETTINGS:
        near = did_you_mean(name, SETTINGS) or f"; there are {', '.join(SETTINGS)}"
        raise UserError(f"/set {name}: no such setting{near}")
    kind: Any = plain_type(typing.get_type_hints(ChatSamplingConfig)[name])[0]
    try:
        value: Any = tuple(part for part in [text] if part) if kind is tuple else kind(text)
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"/set {name}: {text or 'nothing'} is not {expected}") from error
    try:
        return dataclasses.replace(sampling, **{name: value})
    except SettingError as error:
        raise UserError(f"/set {error.name}: {error.problem}") from error


@contextlib.contextmanager
def interrupt_event() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C sets, instead of a KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only.
        yield event
        return
    previous = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)

"""A chat line by line: what is typed is a message to answer or a command that begins with a slash."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.settings import field_types, plain_type
from tfgpt.conversation.config import ChatSamplingConfig
from tfgpt.conversation.conversation import Conversation, Message, readable
from tfgpt.corpus.sources.base import message_text
from tfgpt.generation.prompts import checked_utf8, encode

if TYPE_CHECKING:
    from tfgpt.generation.generator import Completion, Generator

SETTABLE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop", "seed")
"""What /set changes."""

HELP = """\
/help                 this
/reset                forget the conversation; the system message stays
/system TEXT          set the system message; /system - takes it out
/system               show it
/regenerate           another reply to your last message
/set NAME VALUE       {names}
                      {more}
/set                  show how replies are drawn
/save FILE.jsonl      write the conversation as a line of a file for train
/load FILE.jsonl [N]  go on with the file's last conversation, or line N's
/quit                 end, as Ctrl-D does
Write // where a message begins with a slash. Ctrl-C stops a reply; Alt-Enter
begins a new line."""


class ChatUI(Protocol):
    """What a chat is shown on."""

    def note(self, text: str) -> None:
        """Shows what is no part of the conversation."""

    def write(self, text: str) -> None:
        """Shows a part of a reply."""

    def end_reply(self) -> None:
        """Ends the reply."""


class InterruptFlag:
    """While the block runs, Ctrl-C sets `wanted` and does nothing else."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> InterruptFlag:
        # Python delivers signals to the main thread alone.
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.before)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.wanted = True


class ChatSession:
    """A conversation with a model.

    Args:
        generator: the model.
        sampling: how replies are drawn.
        conversation: what was said before.
        screen: what shows it.
    """

    def __init__(self, generator: Generator, sampling: ChatSamplingConfig, conversation: Conversation, screen: ChatUI):
        self.generator, self.sampling, self.conversation, self.screen = generator, sampling, conversation, screen
        self.redrawn = 0

    def take(self, line: str) -> bool:
        """Answers a message or carries out a command; False where the chat ends.

        Raises:
            UserError: the line cannot be done; the conversation is as it was before.
        """
        if not line.strip():
            return True
        if not line.startswith("/"):
            self.say(line)
        elif line.startswith("//"):
            self.say(line[1:])
        else:
            name, _, rest = line[1:].strip().partition(" ")
            if name == "quit":
                return False
            if name not in COMMANDS:
                near = did_you_mean(name, COMMANDS, "/")
                raise UserError(f"/{name}: no such command{near}; /help lists them, a message is begun with //")
            COMMANDS[name](self, rest.strip())
        return True

    def say(self, text: str) -> None:
        """Takes what the user says, and answers."""
        message = {"role": "user", "content": checked_utf8(text, "the message")}
        self.redrawn = 0
        self._answer([*self.conversation.messages, message])

    def _answer(self, messages: list[Message]) -> None:
        """Writes a reply to messages, which become the conversation together with it."""
        ids, left_out = self._prompt(messages)
        if left_out:
            self.screen.note(f"the model no longer reads the first {left_out} messages: they and a reply do not fit")
        # Another reply to the same message is another draw.
        sampling = dataclasses.replace(self.sampling, seed=wrapped(self.sampling.seed + self.redrawn))
        said: list[str] = []
        completion: Completion | None = None
        with InterruptFlag() as interruption:
            for piece in self.generator.stream(ids, sampling):
                said.append(piece.text)
                self.screen.write(piece.text)
                completion = piece.completion
                if interruption.wanted:
                    break
        self.screen.end_reply()
        if completion is None and not "".join(said).strip():
            self.screen.note("stopped before it began; your message is not kept")
            return
        self.conversation.messages = [*messages, {"role": "assistant", "content": "".join(said)}]
        if completion is None:
            self.screen.note("stopped; what was written is kept")
        elif completion.finish_reason == "length":
            self.screen.note(f"cut at {sampling.max_new_tokens} tokens; /set max_new_tokens NUMBER changes that")
        elif not completion.text:
            self.screen.note("the model ended its turn without a word")

    def _prompt(self, messages: list[Message]):
        """The ids that the model reads, and how many of the messages are not among them."""
        tokenizer, context = self.generator.tokenizer, self.generator.context

        def length(part: Sequence[Message]) -> int:
            return len(encode(tokenizer, list(part), self.sampling.add_end_of_text, self.conversation.tools))

        # Room for the whole reply, so that nothing is lost while it is written; at most half of the context.
        room = context - min(self.sampling.max_new_tokens, context // 2)
        part, left_out = readable(messages, length, room)
        ids = encode(tokenizer, part, self.sampling.add_end_of_text, self.conversation.tools)
        if len(ids) > context:
            raise UserError(
                f"the message has {len(ids)} tokens{' with the system message' if part[0]['role'] == 'system' else ''}"
                f", the model reads at most {context}; shorten it"
            )
        return ids, left_out

    def help(self, rest: str) -> None:
        """/help"""
        self.screen.note(HELP.format(names=" ".join(SETTABLE[:5]), more=" ".join(SETTABLE[5:])))

    def reset(self, rest: str) -> None:
        """/reset"""
        self.conversation.reset()
        self.screen.note("a new conversation")

    def system(self, rest: str) -> None:
        """/system"""
        if rest:
            self.conversation.set_system(None if rest == "-" else checked_utf8(rest, "the system message"))
        said = self.conversation.system
        self.screen.note("no system message" if said is None else f"the system message: {said}")

    def regenerate(self, rest: str) -> None:
        """/regenerate"""
        messages = self.conversation.messages
        if not messages or messages[-1]["role"] == "system":
            raise UserError("/regenerate: nothing was said yet")
        self.redrawn += 1
        self._answer(messages[:-1] if messages[-1]["role"] == "assistant" else list(messages))

    def set(self, rest: str) -> None:
        """/set"""
        if rest:
            self.sampling = changed(self.sampling, *rest.replace("=", " ", 1).partition(" ")[::2])
        self.screen.note("  ".join(f"{name} {shown(getattr(self.sampling, name))}" for name in SETTABLE))

    def save(self, rest: str) -> None:
        """/save"""
        place = self.conversation.place
        if not rest and not place:
            raise UserError("/save: give a file, such as /save chats.jsonl")
        path = Path(rest).expanduser() if rest else place[0]  # type: ignore[index]
        number = self.conversation.save(path)
        self.screen.note(f"saved as line {number} of {path}")

    def load(self, rest: str) -> None:
        """/load"""
        name, _, number = rest.rpartition(" ")
        if not (name and number.isdecimal()):
            name, number = rest, ""
        if not name:
            raise UserError("/load: give a file, such as /load chats.jsonl")
        self.conversation = Conversation.load(Path(name).expanduser(), int(number) if number else None)
        self.redrawn = 0
        for line in self.transcript():
            self.screen.note(line)

    def transcript(self) -> Iterator[str]:
        """The conversation so far, a paragraph a message."""
        for message in self.conversation.messages:
            yield f"{message['role']}: {message_text(message)}"


COMMANDS = {
    "help": ChatSession.help,
    "reset": ChatSession.reset,
    "system": ChatSession.system,
    "regenerate": ChatSession.regenerate,
    "set": ChatSession.set,
    "save": ChatSession.save,
    "load": ChatSession.load,
}


def changed(sampling: ChatSamplingConfig, name: str, text: str) -> ChatSamplingConfig:
    """The settings with one of them changed.

    Raises:
        UserError: there is no such setting, or the value does not do.
    """
    if name not in SETTABLE:
        near = did_you_mean(name, SETTABLE) or f"; there are {', '.join(SETTABLE)}"
        raise UserError(f"/set {name}: no such setting{near}")
    kind: Any = plain_type(field_types(ChatSamplingConfig)[name])[0]
    text = text.strip()
    try:
        value: Any = tuple(part for part in [text] if part) if kind is tuple else kind(text)
    except ValueError as error:
        raise UserError(f"/set {name}: {text or 'nothing'} is no {'whole ' if kind is int else ''}number") from error
    try:
        return dataclasses.replace(sampling, **{name: value})
    except SettingError as error:
        raise UserError(f"/set {error.name}: {error.problem}") from error


def shown(value: object) -> str:
    """A setting's value for people."""
    return (" ".join(value) or "none") if isinstance(value, tuple) else str(value)


def wrapped(seed: int) -> int:
    """A seed inside 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63

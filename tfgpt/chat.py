"""Chats with a trained model in the terminal.

The shortest form is `python -m tfgpt.chat --model=runs/quickstart`. /help lists the commands: they change the sampling
or the system message, regenerate a reply, or save the conversation as JSON Lines that `train` reads. Ctrl-C stops a
reply, Ctrl-D ends the chat. The model stops reading the oldest turns of a conversation that outgrows its context. If
standard input or output is not a terminal, each line gets a reply, and only replies are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversation.config import ChatConfig, ChatSamplingConfig
from tfgpt.conversation.conversation import Conversation
from tfgpt.conversation.terminal import run_chat
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.generation.prompts import check_utf8


def run(chat: ChatConfig, chat_sampling: ChatSamplingConfig) -> None:
    """Checks the inputs without TensorFlow, then chats."""
    directory = model_directory(chat.model)
    conversation = Conversation.load(Path(chat.load).expanduser()) if chat.load else Conversation()
    if chat.system:
        conversation.set_system(check_utf8(chat.system, "--system"))
    import_tensorflow()
    from tfgpt.generation.generator import Generator

    run_chat(Generator.load(directory, dtype=chat.dtype), chat_sampling, conversation, chat.model)


COMMAND = Command("chat", __doc__, [ChatConfig, ChatSamplingConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

"""A chat in the terminal with a trained model.

`python -m tfgpt.chat --model=runs/quickstart`, then type; /help lists what else can be done: change the sampling or
the system message, draw a reply again, save the conversation as a JSON Lines file that `train` reads. Ctrl-C stops a
reply, Ctrl-D ends the chat. When a conversation outgrows the model's context, the oldest turns are left out of what the
model reads. Where standard input or output is no terminal, each line is answered in turn and only replies are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversation.chat_session import ChatSession
from tfgpt.conversation.config import ChatConfig, ChatSamplingConfig
from tfgpt.conversation.conversation import Conversation
from tfgpt.conversation.terminal import StandardOutputUI, TerminalUI, answer_lines, is_terminal, talk, use_utf8
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.generation.prompts import checked_utf8


def run(chat: ChatConfig, chat_sampling: ChatSamplingConfig) -> None:
    """Checks what can be checked without TensorFlow, then talks."""
    directory = model_directory(chat.model)
    conversation = Conversation.load(Path(chat.load).expanduser()) if chat.load else Conversation()
    if chat.system:
        conversation.set_system(checked_utf8(chat.system, "--system"))

    import_tensorflow()
    from tfgpt.generation.generator import Generator

    generator = Generator.load(directory, dtype=chat.dtype)
    use_utf8()
    if not is_terminal():
        answer_lines(ChatSession(generator, chat_sampling, conversation, StandardOutputUI()))
        return
    screen = TerminalUI()
    session = ChatSession(generator, chat_sampling, conversation, screen)
    screen.note(f"{chat.model}, reads {generator.context} tokens; /help lists commands, Ctrl-D ends")
    for line in session.transcript():
        screen.note(line)
    talk(session, screen)


COMMAND = Command("chat", __doc__, [ChatConfig, ChatSamplingConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

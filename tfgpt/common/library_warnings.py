"""Which lines of TensorFlow and its libraries are notices: written while nothing is wrong, or said by us in one line.

As a program, a filter: copies standard input to standard output without them (see `tfgpt.common.tf_logging`). It
imports nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal

# What C++ writes before a message: absl's header and TensorFlow's older one; the letter is the level.
HEADER = re.compile(rb"(?:([IWEF])\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: ([IWEF]) )")
NOTICES = re.compile(
    "|".join(
        (
            r"All log messages before absl::InitializeLog\(\)",
            r"To enable the following instructions: .* rebuild TensorFlow",
            r"oneDNN custom operations are on",
            r"oneDNN supports DT_\w+ only on",  # It takes another kernel then.
            # No GPU, or none for this process; any other answer of the driver is worth reading.
            r"failed call to cuInit: .*(?:UNKNOWN ERROR \(303\)|NO_DEVICE|no CUDA-capable device)",
            r"Could not find (?:cuda drivers|TensorRT)",
            r"Unable to register cu\w+ factory|computation placer already registered",
            r"[Dd]elay kernel",  # How exactly XLA measures a GPU's kernels.
            r"meta_optimizer\.cc:\d+\] \w+ failed",  # The graph runs without this optimization.
            r"MLIR crash reproducer",
            r"Allocation of \d+ exceeds \d+% of free system memory",
            # What is raised as a Python exception besides; among it the end of every data set.
            r"OP_REQUIRES failed at|Local rendezvous is aborting|End of sequence",
            # A lost worker: its line is that of `tfgpt.training.distribution.startup_barrier`.
            r"coordination_service\w*\.cc|ring_alg\.cc|base_collective_executor\.cc",
            r"^Additional GRPC error information|^:UNKNOWN:Error received from peer",
            r"^The error could be from a previous operation\. Restart your program",
            r"will not be optimized because the dataset does not",
            r"did not fully read the dataset being cached",
            # TensorFlow's Python side.
            r"triggered tf\.function retracing",
            r"AutoGraph could not be applied|could not be transformed and will be executed as-is",
            r"not using nccl allreduce",
            r"removed in a future version|Instructions for updating",
        )
    )
)


def is_notice(text: str) -> bool:
    """Whether a message is a notice."""
    return NOTICES.search(text) is not None


def is_hidden(line: bytes, before: bool) -> bool:
    """Whether a line of standard error is left out; `before` says whether the line above it was."""
    header = HEADER.match(line)
    if header is None:
        # A message's further lines are indented.
        return (before and line[:1] in b"\t ") or is_notice(line.decode("utf-8", "replace"))
    level = header[1] or header[2]
    return level == b"I" or (level != b"F" and is_notice(line.decode("utf-8", "replace")))


def main() -> None:
    """Copies until the last writer has closed; what is no line yet passes at once unless it begins like a notice."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    rest, before = b"", False
    while chunk := os.read(0, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        shown = []
        for line in lines:
            before = is_hidden(line + b"\n", before)
            shown += [] if before else [line + b"\n"]
        if rest and not re.match(rb"[IWEFT\t \d]", rest):
            shown, rest = [*shown, rest], b""
        write(b"".join(shown))
    write(b"" if is_hidden(rest, before) else rest)


def write(content: bytes) -> None:
    """Writes to standard output, or nowhere when its terminal is gone: who writes to us must not learn of it."""
    with contextlib.suppress(OSError):
        os.write(1, content)


if __name__ == "__main__":
    main()

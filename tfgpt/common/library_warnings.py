"""Known notices of TensorFlow and its libraries, which are not shown.

As a program it copies standard input to standard output without them (see `tfgpt.common.tf_logging`). It imports only
the standard library, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal

# The headers of C++ messages: absl's and TensorFlow's older one; the letter is the level.
HEADER = re.compile(rb"(?:([IWEF])\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: ([IWEF]) )")
NOTICES = re.compile(
    "|".join(
        (
            r"All log messages before absl::InitializeLog\(\)",
            r"To enable the following instructions: .* rebuild TensorFlow",
            r"oneDNN custom operations are on",
            r"oneDNN supports DT_\w+ only on",  # TensorFlow takes another kernel.
            # No GPU, or none for this process; other answers of the driver are shown.
            r"failed call to cuInit: .*(?:UNKNOWN ERROR \(303\)|NO_DEVICE|no CUDA-capable device)",
            r"Could not find (?:cuda drivers|TensorRT)",
            r"Unable to register cu\w+ factory|computation placer already registered",
            r"[Dd]elay kernel",  # The precision of XLA's measurements of GPU kernels.
            r"meta_optimizer\.cc:\d+\] \w+ failed",  # The graph runs without this optimization.
            r"MLIR crash reproducer",
            r"Allocation of \d+ exceeds \d+% of free system memory",
            # Also raised as Python exceptions; the end of every dataset is one.
            r"OP_REQUIRES failed at|Local rendezvous is aborting|End of sequence",
            # A lost worker, which `tfgpt.training.distribution` reports.
            r"coordination_service\w*\.cc|ring_alg\.cc|base_collective_executor\.cc",
            r"^Additional GRPC error information|^:UNKNOWN:Error received from peer",
            r"^The error could be from a previous operation\. Restart your program",
            r"will not be optimized because the dataset does not",
            r"did not fully read the dataset being cached",
            # TensorFlow's Python side.
            r"triggered tf\.function retracing",
            r"AutoGraph could not be applied|could not be transformed and will be executed as-is",
            r"not using nccl allreduce",
            r"removed in a future version|Instructions for updating|FeatureConnector\.dtype. is deprecated",
        )
    )
)


def is_notice(text: str) -> bool:
    return NOTICES.search(text) is not None


def is_hidden(line: bytes, hidden_before: bool) -> bool:
    header = HEADER.match(line)
    level = header and (header[1] or header[2])
    if level is None and hidden_before and line[:1] in b"\t ":
        return True  # The further lines of a message are indented.
    return level == b"I" or (level != b"F" and is_notice(line.decode("utf-8", "replace")))


def main() -> None:
    """Copies until the last writer has closed. An incomplete line passes at once unless it begins like a notice."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    rest, hidden = b"", False
    while chunk := os.read(0, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        shown = b""
        for line in lines:
            hidden = is_hidden(line + b"\n", hidden)
            shown += b"" if hidden else line + b"\n"
        if rest and not re.match(rb"[IWEFT\t \d]", rest):
            shown, rest = shown + rest, b""
        write(shown)
    write(b"" if is_hidden(rest, hidden) else rest)


def write(content: bytes) -> None:
    with contextlib.suppress(OSError):  # The terminal is closed; the writers must not notice.
        os.write(1, content)


if __name__ == "__main__":
    main()

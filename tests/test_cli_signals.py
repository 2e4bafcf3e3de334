"""Claims about what a signal does to a command, in processes of their own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tfgpt.model.checkpoints.huggingface_config import to_hugging_face
from tfgpt.model.config import DecoderConfig
from tfgpt.tokenization.train_tokenizer import byte_tokenizer


def waits(process: subprocess.Popen) -> bool:
    """Whether a process has installed its handlers and sleeps, here because it reads."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and "State:\tS" in status


def test_a_signal_ends_generate_with_130_or_143_and_one_line(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path)
    config = to_hugging_face(DecoderConfig(vocabulary_size=tokenizer.vocabulary_size))
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tfgpt.generate", f"--model={tmp_path}"]  # It waits for its prompt.
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    numbers = (signal.SIGINT, signal.SIGTERM)
    started = {number: subprocess.Popen(command, text=True, cwd=ROOT, **pipes) for number in numbers}
    for number, process in started.items():
        while not waits(process):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
    for number, process in started.items():
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (128 + number, "")
        assert errors == f"tfgpt.generate: stopped by {number.name} before it was done\n"

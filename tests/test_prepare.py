"""The `prepare` command as a user types it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tfgpt.prepare import main

ROOT = Path(__file__).resolve().parent.parent


def test_prepare_reports_its_results_and_the_next_command(tfgpt, text_file, tmp_path):
    flags = [f"--train_text={text_file}", "--vocabulary_size=300", f"--cache_dir={tmp_path / 'my cache'}"]
    first = tfgpt("prepare", *flags, f"--output_dir={tmp_path / 'out'}")
    assert first.returncode == 0, first.stderr
    for word in "documents:", "tokenizer: 300 ids", "train tokens:", "validation tokens:", "bytes per token", "unused":
        assert word in first.stdout
    assert (tmp_path / "out" / "prepared.json").is_file()
    assert json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())["vocabulary_size"] == 300
    # The next command has the same flags, quoted for a shell, so that it finds all of this in the cache.
    (next_line,) = [line for line in first.stdout.splitlines() if line.startswith("Next: ")]
    words = shlex.split(next_line)
    assert words[:4] == ["Next:", "python", "-m", "tfgpt.train"] and sorted(words[4:]) == sorted(flags)
    second = tfgpt("prepare", *flags)
    assert second.returncode == 0 and second.stdout.count("reused") == 4


def test_prepare_never_imports_tensorflow(text_file, tmp_path):
    program = (
        "import sys; from tfgpt.prepare import main; "
        f"code = main(['--train_text={text_file}', '--vocabulary_size=300', '--cache_dir={tmp_path}']); "
        "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--train_text"),
        (["--train_text=no/such/file.txt"], "no/such/file.txt"),
        (["--train_text={text}", "--tokenizer=no/such/tokenizer"], "--tokenizer"),
        (["--train_text={text}", "--vocabulary_size=100"], "--vocabulary_size"),
        (["--train_text={text}", "--validation_fraction=2"], "--validation_fraction"),
        (["--train_text={text}", "--no_such_flag=1"], "no_such_flag"),
        (["--train_text={text}", "--tokenizer=bytes", "--output_dir=/"], "--output_dir"),
        (["--train_text={text}", "--cache_dir=/dev/null/cache"], "/dev/null/cache"),
    ],
)
def test_a_users_mistake_is_one_line_that_names_it(capfd, text_file, flags, words):
    assert main([flag.format(text=text_file) for flag in flags]) == 2
    # Notes about the split may come before; the last line is the error.
    errors = capfd.readouterr().err
    last = errors.splitlines()[-1]
    assert last.startswith("tfgpt.prepare: ") and words in last and "Traceback" not in errors


def test_conversations_are_prepared_and_shown_with_what_is_learned(tmp_path, capsys):
    turns = [("user", "Hello <|im_end|> there"), ("assistant", "Hi!"), ("user", "Bye"), ("assistant", "Good bye.")]
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    others = [line.replace("Hello", f"Hello {number}") for number in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(others) + "\n")
    flags = [f"--train_text={tmp_path / 'chats.jsonl'}", "--tokenizer=bytes", "--validation_fraction=0.2"]
    assert main([*flags, "--objective=chat", "--sequence_length=200", "--preview=1"]) == 0
    shown = capsys.readouterr().out
    assert "<|im_end|> there⟦<|im_end|>⟧⏎⟦<|im_start|>⟧assistant⏎«Hi!⟦<|im_end|>⟧»⏎⟦<|im_start|>⟧user⏎Bye" in shown
    assert "row 0: 200 tokens, " in shown and "of which is not padding" in shown
    assert main([*flags, "--preview=1"]) == 2
    assert "--preview: shows conversations, with --objective=chat" in capsys.readouterr().err

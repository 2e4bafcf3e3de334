"""`python -m tfgpt.generate` as a user runs it: what it prints, and what it says of wrong input."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.models import save_model
from tfgpt import generate
from tfgpt.tokenization.train_tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "model", unused_ids=0, max_sequence_length=32)


@pytest.fixture
def said(capsys, monkeypatch):
    def run(*arguments: str | Path, standard_input: str = "") -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(standard_input))
        code = generate.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


GREEDY = ("--max_new_tokens=12", "--temperature=0", "--seed=1")


def test_json_is_exactly_one_object_on_standard_output(model, tfgpt):
    result = tfgpt("generate", f"--model={model}", "--prompt=ab", *GREEDY, "--json")
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    found = json.loads(line)
    assert found["prompt"] == "ab"
    assert found["finish_reason"] in ("stop", "length")
    assert len(found["token_ids"]) == 12 or found["finish_reason"] == "stop"
    assert found["text"] == byte_tokenizer().decode(found["token_ids"])
    assert found["log_probability"] < 0


def test_wrong_flags_are_refused_before_tensorflow_is_imported(tfgpt, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['tensorflow'] = sys.modules['keras'] = None\n"  # Importing them raises.
    )
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-m", "tfgpt.generate", "--model=/nowhere", "--prompt=a"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
        cwd=root,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("tfgpt.generate: --model: /nowhere: no such file or directory; the folder / has ")


def test_the_streamed_text_is_the_text_of_json(model, said):
    for seed in range(3):
        flags = (f"--model={model}", "--prompt=汉", "--max_new_tokens=20", f"--seed={seed}")
        expected = json.loads(said(*flags, "--json")[1])["text"]
        assert said(*flags)[1] == expected + "\n"


def test_several_prompts_and_samples_come_in_order(model, said):
    flags = (f"--model={model}", "--prompt=ab", "--prompt=cd", "--num_samples=2", "--max_new_tokens=4")
    code, output, _ = said(*flags, "--json")
    found = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert [(one["prompt"], one["sample"]) for one in found] == [("ab", 0), ("ab", 1), ("cd", 0), ("cd", 1)]
    _, plain, _ = said(*flags)
    assert [line for line in plain.splitlines() if line.startswith("---")] == [
        "--- prompt 1, sample 1: ab",
        "--- prompt 1, sample 2: ab",
        "--- prompt 2, sample 1: cd",
        "--- prompt 2, sample 2: cd",
    ]


def test_prompts_come_from_flag_file_json_lines_or_standard_input(model, said, tmp_path):
    flags = (f"--model={model}", *GREEDY, "--json")
    expected = said(*flags, "--prompt=a\nb")
    text, lines = tmp_path / "prompt.txt", tmp_path / "prompts.jsonl"
    text.write_text("a\nb\n", encoding="utf-8")
    lines.write_text('"a\\nb"\n\n{"prompt": "c"}\n', encoding="utf-8")
    assert said(*flags, f"--prompt_file={text}") == expected
    assert said(*flags, standard_input="a\nb\n") == expected
    several = [json.loads(line) for line in said(*flags, f"--prompt_file={lines}")[1].splitlines()]
    assert [one["prompt"] for one in several] == ["a\nb", "c"]
    assert several[0]["token_ids"] == json.loads(expected[1])["token_ids"]
    assert json.loads(said(*flags, standard_input="")[1])["prompt"] == ""


def test_chat_reads_the_prompt_as_a_users_turn(model, said, tmp_path):
    flags = (f"--model={model}", *GREEDY, "--json")
    chat = json.loads(said(*flags, "--chat", "--prompt=hi")[1])
    lines = tmp_path / "chat.jsonl"
    lines.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}), encoding="utf-8")
    from_file = json.loads(said(*flags, f"--prompt_file={lines}")[1])
    assert chat == from_file
    assert chat["token_ids"] != json.loads(said(*flags, "--prompt=hi")[1])["token_ids"]


def test_beams_give_the_asked_number_of_texts(model, said):
    code, output, _ = said(
        f"--model={model}", "--prompt=ab", *GREEDY, "--num_beams=3", "--num_samples=2", "--length_penalty=0", "--json"
    )
    scores = [json.loads(line)["log_probability"] for line in output.splitlines()]
    assert code == 0 and len(scores) == 2 and scores[0] >= scores[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model: is missing"),
        (["--model={tmp}"], "{tmp} is not a model: there is no config.json in it, no adapter_config.json"),
        (
            ["--model={model}/config.json"],
            "{model}/config.json is a file, but not a GGUF file; give its folder, {model}",
        ),
        (["--model={model}", "--temperature=-1"], "--temperature: -1.0 is below"),
        (["--model={model}", "--top_p=1.5"], "--top_p: 1.5 is above"),
        (["--model={model}", "--top_p=0"], "--top_p: 0.0 leaves no token"),
        (["--model={model}", "--min_p=2"], "--min_p: 2.0 is above"),
        (["--model={model}", "--top_k=-3"], "--top_k: -3 is below"),
        (["--model={model}", "--repetition_penalty=0"], "--repetition_penalty: 0.0 is not above 0"),
        (["--model={model}", "--max_new_tokens=0"], "--max_new_tokens: 0 is below"),
        (["--model={model}", "--stop="], "--stop: an empty string"),
        (["--model={model}", "--num_beams=2"], "--num_beams: beam search does not sample"),
        (["--model={model}", "--num_beams=2", "--temperature=0", "--num_samples=3"], "--num_samples: 3 texts"),
        (["--model={model}", "--num_beams=2", "--temperature=0"], "--max_new_tokens: 128 tokens after a prompt of 1"),
        (["--model={model}", f"--prompt={'x' * 40}"], "the prompt has 41 tokens, the model reads at most 32"),
        (["--model={model}", "--prompt=a", "--prompt_file={tmp}/b"], "--prompt_file: is given together with --prompt"),
        (["--model={model}", "--prompt_file={tmp}/b"], "--prompt_file: {tmp}/b: no such file"),
        (["--model={model}", "--prompt_file={tmp}/bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["--model={model}", "--prompt_file={tmp}/empty.jsonl"], "empty.jsonl: has no line with a prompt"),
        (["--model={model}", "--prompt=a\udcff"], "--prompt: is not UTF-8"),
        (["--model={model}", "--sead=1"], "sead"),
        (["--model={model}", "ab"], "ab: an argument without a flag"),
    ],
)
def test_wrong_input_is_one_line_that_names_it_and_exit_code_2(model, said, tmp_path, arguments, words):
    (tmp_path / "bad.jsonl").write_text('"a"\n{"prompt"\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    places = {"model": model, "tmp": tmp_path}
    code, output, errors = said(*(argument.format(**places) for argument in arguments))
    assert (code, output, len(errors)) == (2, "", 1)
    assert words.format(**places) in errors[0]


def test_a_tokenizer_larger_than_the_model_is_refused(model, said, tmp_path):
    place = tmp_path / "mixed"
    shutil.copytree(model, place)
    document = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"].append({**document["added_tokens"][0], "id": 260, "content": "<|extra|>", "special": True})
    (place / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    code, _, errors = said(f"--model={place}", "--prompt=a")
    assert code == 2 and "do not belong together" in errors[0]

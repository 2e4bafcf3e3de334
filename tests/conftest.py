"""What every test shares: quiet TensorFlow, a cache of its own, and a way to run a command as a user does."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tfgpt.common.errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and the processes that they start as well.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

TEXT = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.\n"
    "How vexingly quick daft zebras jump! Sphinx of black quartz, judge my vow.\n\n"
)

# Tests that stay in one process of several (`-n 2`, see scripts/test.sh): those of a folder that share what takes long
# to make, and those that start clusters, which would take the cores and ports from each other. The longest come first.
TOGETHER = {
    "clusters": (
        "training/test_exactness.py",
        "training/objectives/test_tuning_exactness.py",
        "training/test_faults.py",
        "training/distribution/test_collectives.py",
        "scripts/test_launch.py",
    ),
    "readme": ("test_readme.py",),
    "serving": ("serving/",),
}


def chat(*turns: str, system: str | None = None) -> list[dict]:
    """Messages of the user and the assistant by turns, after a system message if there is one."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


def refusal(function: Callable, *arguments, **options) -> str:
    """The one line of the UserError that a call ends with."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files whose tests take nine seconds or more; `scripts/test.sh --fast` leaves them out.
LONG = frozenset(
    """
    conversion/test_exports conversion/test_families diagnosis/test_initialization diagnosis/test_overfit
    diagnosis/test_run_checks generation/test_generator generation/test_transformers model/test_cost
    model/test_decoder model/test_lora model/test_training_path model/test_transformers scripts/test_bench_decode
    scripts/test_launch search/test_learning_rate_transfer search/test_oracle search/test_scaling
    search/test_seed_comparison search/test_worker_pool serving/test_app serving/test_app_limits serving/test_client
    serving/test_serve_command serving/test_verification test_chat test_configs test_doctor test_evaluate
    test_export test_generate test_readme tokenization/in_graph/test_byte_level
    tokenization/in_graph/test_pretokenizers tokenization/test_tokenizer training/distribution/test_collectives
    training/distribution/test_startup_barrier training/objectives/test_grpo training/objectives/test_preferences
    training/objectives/test_supervised_fine_tuning training/objectives/test_tuning_exactness
    training/test_compilation training/test_exactness training/test_faults training/test_lora_run training/test_run
    training/test_settings training/test_tpu training/test_trainer
    """.split()
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests, each other file being a group of its own, and puts the long groups first."""
    names = list(TOGETHER)

    def group(item: pytest.Item) -> str:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next((name for name in names if path.startswith(TOGETHER[name])), path)

    groups = {item: group(item) for item in items}
    for item, name in groups.items():
        item.add_marker(pytest.mark.xdist_group(name))
        if item.path.relative_to(ROOT / "tests").with_suffix("").as_posix() in LONG:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: names.index(groups[item]) if groups[item] in names else len(names))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the user's own cache out of the tests, and the tests' files out of the user's cache."""
    os.environ["TFGPT_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain text of about 60 kB in which there is something to learn."""
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("".join(f"Chapter {number}.\n{TEXT}" for number in range(350)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Real text: the language reference that every Python brings along, cut to paragraphs."""
    return "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> bytes:
    """A small model of Llama 2's kind: BPE, byte fallback, a space before each text."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text("\n".join(documents[:400]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tiny"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.99, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return (folder / "tiny.model").read_bytes()


@pytest.fixture(scope="session")
def tfgpt() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python -m tfgpt.NAME ARGUMENTS` in a process of its own; returns its exit code and output."""

    def run(name: str, *arguments: str | Path, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"tfgpt.{name}" if name else "tfgpt", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=options.pop("cwd", ROOT),
            env={**os.environ, **options.pop("env", {}), "PYTHONPATH": str(ROOT)},
            **options,
        )

    return run

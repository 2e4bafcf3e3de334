"""The tokenizer's settings."""

import pytest

from tfgpt.common.errors import SettingError
from tfgpt.tokenization.config import TokenizerConfig


def test_default_is_a_multiple_of_64_and_an_existing_path_is_accepted(tmp_path):
    assert TokenizerConfig().tokenizer == "bpe"
    assert TokenizerConfig().vocabulary_size % 64 == 0
    assert TokenizerConfig(tokenizer=str(tmp_path)).tokenizer == str(tmp_path)


def test_a_slip_of_the_keyboard_names_the_flag():
    with pytest.raises(SettingError, match=r"^--tokenizer: bpee: is neither bpe nor bytes .* did you mean bpe\?$"):
        TokenizerConfig(tokenizer="bpee")


def test_vocabulary_without_room_for_bytes_and_specials_is_refused():
    assert TokenizerConfig(vocabulary_size=260).vocabulary_size == 260
    with pytest.raises(SettingError, match="--vocabulary_size: 259 is below the smallest allowed, 260"):
        TokenizerConfig(vocabulary_size=259)

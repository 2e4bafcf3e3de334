"""GGUF files that hold a part of a model, or something else than a model, are refused by what they are."""

from pathlib import Path

import gguf
import pytest

from tfgpt.common.errors import UserError
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.convert import convert


def line_of(path: Path, **metadata: str | int) -> str:
    """What a file with this metadata is refused with, as --source."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(name.replace("_", "."), value)
        else:
            writer.add_uint16(name.replace("_", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return refusal(path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert(ConvertConfig(source=str(path), output=str(path.with_name("out"))), lambda line: None)
    assert not path.with_name("out").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_part_of_a_split_file_says_how_the_parts_are_joined(tmp_path):
    path = tmp_path / "my model-00002-of-00003.gguf"
    assert line_of(path, split_no=1, split_count=3) == (
        f"{path}: is part 2 of 3 of a split model; llama-gguf-split --merge "
        f"'{tmp_path}/my model-00001-of-00003.gguf' '{tmp_path}/my model.gguf' makes it one file"
    )


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("adapter", "llama-export-lora"), ("mmproj", "the language model"), ("imatrix", "only guides"), ("vocab", "only")],
)
def test_what_is_no_model_is_named(kind, advice, tmp_path):
    line = line_of(tmp_path / "file.gguf", general_type=kind)
    assert f"does not hold a model (general.type is '{kind}'); " in line and advice in line

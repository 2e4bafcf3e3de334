"""Damaged, foreign and mismatched model directories are refused in one line that names the file and the tensor."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import refusal
from tests.model.options import GPT2, MODERN, NANOCHAT, random_decoder, random_ids
from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.model.checkpoints.huggingface import (
    load_config,
    load_decoder,
    load_stop_ids,
    load_weights,
    open_model,
    save_decoder,
    write_checkpoint,
)
from tfgpt.model.checkpoints.huggingface_config import transformers_model_type
from tfgpt.model.checkpoints.lazy_weights import check_finite
from tfgpt.model.checkpoints.safetensors_file import open_safetensors
from tfgpt.model.config import DecoderConfig
from tfgpt.tokenization.tokenizer_json import read_document


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    save_decoder(random_decoder(MODERN), directory)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(directory, change) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in safetensors.numpy.load_file(path).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def line_of(directory) -> str:
    return refusal(load_decoder, directory)


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "is missing"),
        ("model.layers.7.thing", np.zeros(2, np.float32), "is one too many"),
        ("model.norm.weight", np.ones(31, np.float32), "is (31,), the config asks for (32,)"),
        ("model.norm.weight", np.ones(32, np.int8), "holds int8 numbers"),
    ],
)
def test_a_missing_foreign_or_misshapen_tensor_is_named(directory, name, tensor, problem):
    rewrite(directory, lambda tensors: tensors.pop(name) if tensor is None else tensors.update({name: tensor}))
    assert line_of(directory).startswith(f"{directory}/model.safetensors: tensor {name} {problem}")


def test_a_weight_that_the_decoder_has_no_place_for_is_refused(tmp_path):
    save_decoder(random_decoder(GPT2 | {"use_bias": False}), tmp_path)
    load_decoder(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors["transformer.h.0.ln_1.bias"].fill(0.5))
    assert "transformer.h.0.ln_1.bias is not all 0, and the decoder has no block_0/attention_norm/bias" in line_of(
        tmp_path
    )


@pytest.mark.parametrize("keep", [0, 5, 200, -1, None])
def test_a_truncated_file_and_one_of_another_kind_are_refused_by_name(directory, keep):
    path = directory / "model.safetensors"
    other = b"\x10\0\0\0\0\0\0\0this is no json" + b"." * 100
    path.write_bytes(other if keep is None else path.read_bytes()[:keep])
    assert line_of(directory).startswith(f"{path}: cannot be read as safetensors (")


def test_missing_files_are_named(directory, tmp_path):
    (directory / "model.safetensors").unlink()
    assert "model.safetensors: cannot be read as safetensors (No such file or directory)" in line_of(directory)
    assert line_of(tmp_path / "nowhere") == f"{tmp_path}/nowhere: is not a model directory (config.json is missing)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not supported; supported are gpt2, nanochat, smollm3, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn' is not supported"),
        (
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types differ from layer to layer",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
    ],
)
def test_a_config_that_the_decoder_cannot_compute_is_refused(directory, change, message):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = refusal(load_config, directory)
    assert line.startswith(f"{path}: ") and message in line


def test_broken_json_is_refused_by_name(directory):
    (directory / "config.json").write_text("{")
    assert f"{directory}/config.json: cannot be read as JSON" in line_of(directory)


def test_weights_of_another_size_do_not_load_into_a_decoder(directory):
    with pytest.raises(UserError, match=r"tensor .* is .*, the config asks for"):
        load_weights(random_decoder(MODERN | {"hidden_dim": 64}), directory)


def test_what_transformers_cannot_express_is_saved_under_our_own_names_and_says_why(tmp_path):
    reasons = {
        "transformers has no model with attention_scale=0.5": NANOCHAT,
        "Qwen3ForCausalLM, the most similar model of transformers, has no normalization=layer_norm": MODERN
        | {"normalization": "layer_norm"},
        "Qwen3ForCausalLM, the most similar model of transformers, has no mlp=gelu": MODERN | {"mlp": "gelu"},
        "has no logit_soft_cap=3.0": MODERN | {"logit_soft_cap": 3.0},
        "has no use_bias=True": MODERN | {"use_bias": True},
        "GPT2LMHeadModel, the most similar model of transformers, has no sliding_window": GPT2 | {"sliding_window": 4},
        "Qwen2ForCausalLM, the most similar model of transformers, has no use_bias": MODERN
        | {"query_key_norm": False, "sliding_window": 4, "use_bias": True},
        "has no mlp=squared_relu": MODERN | {"mlp": "squared_relu"},
    }
    for reason, values in reasons.items():
        model_type, why = transformers_model_type(DecoderConfig.from_dict(values))
        assert model_type is None
        assert reason in why
    decoder = random_decoder(NANOCHAT)
    save_decoder(decoder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "tfgpt"
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
    assert "block_0.attention.query.kernel" in names
    again = load_decoder(tmp_path)
    token_ids = random_ids(1, 5)
    np.testing.assert_array_equal(again({"token_ids": token_ids}).numpy(), decoder({"token_ids": token_ids}).numpy())


def test_our_safetensors_files_are_the_librarys(saved):
    ours = open_safetensors(saved / "model.safetensors")
    theirs = safetensors.numpy.load_file(saved / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


def test_saving_leaves_other_files_alone_and_no_temporaries(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    save_decoder(random_decoder(MODERN), tmp_path, end_of_text_id=0)
    save_decoder(random_decoder(MODERN), tmp_path, end_of_text_id=0)
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_tensor_with_numbers_that_are_none_is_named(directory, number):
    # openvla/openvla#53: the model of a diverged run, which writes one token for ever.
    rewrite(directory, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].__setitem__((0, 0), number))
    line = line_of(directory)
    assert "model.safetensors: tensor model.layers.1.mlp.down_proj.weight is damaged: 1 of its" in line


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers_that_are_none_are_found_in_every_type_of_weights(dtype):
    numbers = np.array([[0.0, -0.0, 6e4], [-6e4, 1e-7, 1.0]], dtype).T
    assert check_finite(numbers, "w") is numbers
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        numbers[1, 1] = bad
        with pytest.raises(UserError, match="^w is damaged: 1 of its 6 numbers"):
            check_finite(numbers, "w")


def test_weights_that_float16_cannot_hold_are_not_written_as_infinity(directory, tmp_path):
    # ggml-org/llama.cpp#13722.
    rewrite(directory, lambda tensors: tensors["model.norm.weight"].fill(1e6))
    with pytest.raises(UserError, match="tensor model.norm.weight: float16 ends at 65,504"):
        write_checkpoint(open_model(directory), tmp_path / "half", np.dtype(np.float16), {})
    write_checkpoint(open_model(directory), tmp_path / "bfloat", np.dtype(ml_dtypes.bfloat16), {})


def test_a_git_lfs_pointer_is_called_so(directory):
    # huggingface/transformers#27923: a clone without git-lfs.
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("model.safetensors", "config.json"):
        (directory / name).write_text(pointer)
        assert line_of(directory).startswith(f"{directory / name}: is a git-lfs pointer, not the file itself")
    (directory / "tokenizer.json").write_text(pointer)
    with pytest.raises(UserError, match="tokenizer.json: is a git-lfs pointer"):
        read_document(directory / "tokenizer.json")


def test_a_byte_order_mark_before_the_config_is_skipped(directory):
    # huggingface/datasets#8241; Windows editors write it.
    config = load_config(directory)
    (directory / "config.json").write_bytes(b"\xef\xbb\xbf" + (directory / "config.json").read_bytes())
    assert load_config(directory) == config


def test_what_ends_a_text_stands_in_the_config_where_there_is_no_generation_config(directory):
    # vllm-project/vllm#5954: without it the model writes on behind its answer.
    write_json(directory / "generation_config.json", {"eos_token_id": [5, 7]})
    assert load_stop_ids(directory) == [5, 7]
    write_json(directory / "config.json", {**read_json(directory / "config.json"), "eos_token_id": [3, 9]})
    assert load_stop_ids(directory) == [5, 7]
    write_json(directory / "generation_config.json", {"temperature": 0.7})
    assert load_stop_ids(directory) == [3, 9]
    (directory / "generation_config.json").unlink()
    assert load_stop_ids(directory) == [3, 9]

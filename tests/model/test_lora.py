"""Claims about low-rank adapters: what they compute, what their gradients are, how `peft` reads and writes them."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import transformers

from tests.model.options import GPT2, MODERN, ONE_BLOCK, random_decoder, random_ids
from tests.model.test_transformers import THEIRS
from tfgpt.common.adapters import is_adapter
from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.model.checkpoints.huggingface import load_decoder, save_decoder
from tfgpt.model.checkpoints.peft_adapters import save_adapter
from tfgpt.model.decoder import Decoder
from tfgpt.model.dropout import dropout_seed
from tfgpt.model.lora import LoraConfig, enable_lora, projections
from tfgpt.model.projection import Projection

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")

TOLERANCE = 1e-4
IDS = random_ids(2, 12)
FAMILIES = {"qwen3": MODERN, "llama": MODERN | {"query_key_norm": False}, "gpt2": GPT2}


def make_base(family: str, directory: Path) -> None:
    if family in FAMILIES:
        save_decoder(random_decoder(FAMILIES[family]), directory)
        return
    torch.manual_seed(0)
    transformers.NanoChatForCausalLM(THEIRS["nanochat"]()).save_pretrained(directory)


def adapted(model: dict | Path, lora: LoraConfig, **options) -> Decoder:
    """A decoder, random or that of a directory, with adapters that change something."""
    decoder = load_decoder(model) if isinstance(model, Path) else random_decoder(model, **options)
    enable_lora(decoder, lora)
    random = np.random.default_rng(2)
    for variable in decoder.trainable_variables:
        variable.assign(random.normal(0.0, 0.2, variable.shape))
    return decoder


def theirs(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize(
    ("family", "layers"),
    [("qwen3", "all"), ("llama", "query,value,down"), ("gpt2", "all"), ("gpt2", "key,output"), ("nanochat", "all")],
)
def test_peft_opens_an_adapter_with_equal_logits(family: str, layers: str, tmp_path: Path):
    lora = LoraConfig(lora_rank=3, lora_alpha=5.0, lora_target_modules=layers)
    make_base(family, tmp_path / "base")
    decoder = adapted(tmp_path / "base", lora)
    expected = decoder({"token_ids": IDS}).numpy()
    save_adapter(decoder, lora, tmp_path / "adapter", tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = theirs(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    np.testing.assert_allclose(theirs(model), expected, atol=TOLERANCE)
    assert np.abs(before - expected).max() > 0.1
    # The adapter directory alone, and the merged model.
    np.testing.assert_allclose(load_decoder(tmp_path / "adapter")({"token_ids": IDS}).numpy(), expected, atol=TOLERANCE)
    save_decoder(decoder, tmp_path / "merged")
    np.testing.assert_allclose(load_decoder(tmp_path / "merged")({"token_ids": IDS}).numpy(), expected, atol=TOLERANCE)
    if family != "nanochat":  # Ours write what is nanochat's own in our own format.
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        np.testing.assert_allclose(theirs(merged), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen3", ["q_proj", "o_proj", "gate_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_fc"]),
        ("nanochat", ["q_proj", "v_proj", "fc1"]),
    ],
)
def test_what_peft_writes_is_merged_with_equal_logits(family: str, targets: list[str], tmp_path: Path):
    make_base(family, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    patterns = {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[0]: 3}, "use_rslora": family == "qwen3"}
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", **patterns)
    model = peft.get_peft_model(base, config)
    random = np.random.default_rng(3)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.tensor(random.normal(0.0, 0.2, weight.shape), dtype=torch.float32)
    expected = theirs(model)
    model.save_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(load_decoder(tmp_path / "adapter")({"token_ids": IDS}).numpy(), expected, atol=TOLERANCE)


def test_an_adapter_computes_what_keras_dense_does():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(3, 8)).astype(np.float32)
    dense = keras.layers.Dense(5, use_bias=False)
    dense.build((None, 8))
    dense.enable_lora(2, lora_alpha=6)
    dense.lora_kernel_b.assign(random.normal(size=(2, 5)))
    mine = Projection(5)
    mine.build((None, 8))
    mine.enable_lora(2, lora_alpha=6)
    mine.kernel.assign(dense._kernel)
    mine.lora_kernel_a.assign(dense.lora_kernel_a)
    mine.lora_kernel_b.assign(dense.lora_kernel_b)
    np.testing.assert_allclose(mine(inputs), dense(inputs), atol=1e-5)


def test_eight_bits_are_off_by_half_a_step_at_most():
    decoder = random_decoder(MODERN)
    kernels = {path: layer.kernel.numpy() for _, path, layer in projections(decoder)}
    enable_lora(decoder, LoraConfig(lora_rank=2, lora_target_modules="query", base_weights="int8"))
    for _, path, layer in projections(decoder):
        step = np.abs(kernels[path]).max(0) / 127  # (units,)
        assert layer.kernel.dtype == "int8"
        assert (np.abs(layer.merged_kernel() - kernels[path]) <= 0.501 * step).all()


def gradients(decoder: Decoder, seed: int | None = None, jit: bool = False) -> list[np.ndarray]:
    """Of the sum of squares of the logits in the trainable variables."""

    @tf.function(jit_compile=jit)
    def compute():
        with dropout_seed(None if seed is None else tf.constant([seed, 0])), tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(decoder({"token_ids": IDS}, training=seed is not None)))
        return tape.gradient(loss, [variable.value for variable in decoder.trainable_variables])

    return [gradient.numpy() for gradient in compute()]


@pytest.mark.parametrize(
    ("base_weights", "jit"), [("float", False), ("int8", False), ("int8", True)], ids=["float", "int8", "int8 in xla"]
)
def test_gradients_of_adapters_are_those_of_the_merged_matrices(base_weights: str, jit: bool, tmp_path: Path):
    """d loss / d A = s · (d loss / d W) Bᵀ and d loss / d B = s · Aᵀ (d loss / d W), W = kernel + s A B."""
    decoder = adapted(ONE_BLOCK, LoraConfig(lora_rank=3, lora_alpha=6.0, base_weights=base_weights))
    save_decoder(decoder, tmp_path)
    whole = load_decoder(tmp_path)
    np.testing.assert_allclose(decoder({"token_ids": IDS}), whole({"token_ids": IDS}), atol=TOLERANCE)
    of_kernels, found = (
        dict(zip([variable.path for variable in model.trainable_variables], gradients(model, jit=jit), strict=True))
        for model in (whole, decoder)
    )
    assert len(found) == 2 * 7
    for _, path, layer in projections(decoder):
        of_kernel = of_kernels[f"decoder/{path}/kernel"]
        for name, expected in (
            ("lora_kernel_a", 2.0 * of_kernel @ layer.lora_kernel_b.numpy().T),
            ("lora_kernel_b", 2.0 * layer.lora_kernel_a.numpy().T @ of_kernel),
        ):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found[f"decoder/{path}/{name}"] / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("base_weights", ["float", "int8"])
def test_rematerialization_changes_no_gradient(base_weights: str):
    lora = LoraConfig(lora_rank=3, base_weights=base_weights, lora_dropout=0.3)
    plain = gradients(adapted(ONE_BLOCK, lora), seed=1)
    again = gradients(adapted(ONE_BLOCK | {"rematerialize": True}, lora), seed=1)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max())
    assert np.abs(plain[1] - gradients(adapted(ONE_BLOCK, lora))[1]).max() > 0


def test_bfloat16_products_stay_near_float32():
    lora = LoraConfig(lora_rank=3, base_weights="int8")
    exact, rounded = (
        adapted(MODERN, lora, dtype=dtype)({"token_ids": IDS}).numpy() for dtype in ("float32", "mixed_bfloat16")
    )
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_layers_that_are_not_there_are_named():
    with pytest.raises(SettingError, match="'head' is not a projection; known are all, attention, mlp"):
        LoraConfig(lora_rank=2, lora_target_modules="query,head")
    with pytest.raises(SettingError, match="the model has no gate"):
        enable_lora(random_decoder(GPT2 | {"num_layers": 1}), LoraConfig(lora_rank=2, lora_target_modules="gate"))
    with pytest.raises(SettingError, match="give --lora_rank"):
        LoraConfig(base_weights="int8")


def save_base_and_adapter(folder: Path) -> tuple[Path, Path]:
    lora = LoraConfig(lora_rank=2, lora_target_modules="query")
    base, adapter = folder / "base", folder / "adapter"
    save_decoder(random_decoder(MODERN), base)
    save_adapter(adapted(base, lora), lora, adapter, base)
    return base, adapter


def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(tmp_path: Path):
    save_base_and_adapter(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = read_json(path)
    for change, line in (
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"peft_type": "IA3"}, "is not the configuration of a LoRA adapter"),
        # huggingface/peft#2184: base + BA is another model than the one that was trained.
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is 'pissa_niter_4': it was trained on a changed base",
        ),
        ({"base_model_name_or_path": "/nowhere"}, "where there is no model; write the path of the base"),
        ({"base_model_name_or_path": None}, "has no base_model_name_or_path"),
    ):
        write_json(path, config | change)
        with pytest.raises(UserError, match=line):
            load_decoder(tmp_path / "adapter")
    # Of another model.
    save_decoder(random_decoder(MODERN | {"num_layers": 1}), tmp_path / "other")
    write_json(path, config | {"base_model_name_or_path": "../other"})
    with pytest.raises(UserError, match="adapts model.layers.1.self_attn.q_proj, which the model does not have"):
        load_decoder(tmp_path / "adapter")


def test_a_config_beside_an_adapter_is_the_bases_and_a_model_beside_it_is_not_guessed_at(tmp_path: Path):
    # huggingface/transformers#43781: trainers leave config.json there; some programs merge into the same folder.
    base, adapter = save_base_and_adapter(tmp_path)
    expected = load_decoder(adapter)({"token_ids": IDS}).numpy()
    shutil.copy(base / "config.json", adapter)
    assert is_adapter(adapter)
    np.testing.assert_array_equal(load_decoder(adapter)({"token_ids": IDS}).numpy(), expected)
    shutil.copy(base / "model.safetensors", adapter)
    with pytest.raises(UserError, match="holds a whole model .* and an adapter .*; which one is meant"):
        load_decoder(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert not is_adapter(adapter)

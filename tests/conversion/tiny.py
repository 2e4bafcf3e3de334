"""Tiny random models of every family, with tokenizers of its kind, as transformers saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tests.conftest import refusal as refused
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.convert import convert
from tfgpt.tokenization.pretokenizer import FAMILIES

VOCABULARY = 420
SIZES = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA31 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}

MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "GPT-2": (
        lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_layer=2, n_embd=32, n_head=4, n_positions=64, initializer_range=0.3
        ),
        "gpt2",
    ),
    "Llama 2": (lambda: transformers.LlamaConfig(**SIZES), "sentencepiece"),
    "Llama 3.1": (
        lambda: transformers.LlamaConfig(
            **SIZES, rope_parameters={**LLAMA31, "original_max_position_embeddings": 32}, tie_word_embeddings=True
        ),
        "llama3",
    ),
    "Llama, linear RoPE": (lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR), "sentencepiece"),
    "Mistral": (lambda: transformers.MistralConfig(**SIZES, sliding_window=16), "sentencepiece"),
    "Qwen2": (lambda: transformers.Qwen2Config(**SIZES), "qwen2"),
    "Qwen3": (lambda: transformers.Qwen3Config(**SIZES, head_dim=16), "qwen2"),
    "SmolLM2": (lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True), "smollm"),
    "SmolLM3": (lambda: transformers.SmolLM3Config(**SIZES, no_rope_layer_interval=2), "llama3"),
}
"""Family → (transformers' config, the kind of its tokenizer)."""

SPECIALS = {
    "gpt2": ["<|endoftext|>"],
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"],
}
ENDS = {"gpt2": "<|endoftext|>", "smollm": "<|im_end|>", "qwen2": "<|im_end|>", "llama3": "<|eot_id|>"}
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"


def converted(source: Path | str, output: Path) -> Path:
    return convert(ConvertConfig(source=str(source), output=str(output)), lambda line: None)


def refusal(source: Path | str, output: Path) -> str:
    """The one line that a source is refused with; nothing is written."""
    line = refused(converted, source, output)
    assert not output.exists()
    return line


def byte_level_files(directory: Path, kind: str, documents: list[str]) -> None:
    trainee = tokenizers.Tokenizer(tokenizers.models.BPE())
    shell = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    trainee.pre_tokenizer = tokenizers.Tokenizer.from_str(
        json.dumps({**shell, "pre_tokenizer": FAMILIES[kind]})
    ).pre_tokenizer
    trainee.decoder = tokenizers.decoders.ByteLevel()
    if kind == "qwen2":
        trainee.normalizer = tokenizers.normalizers.NFC()
    specials = SPECIALS[kind]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=specials if kind in ("gpt2", "smollm") else [],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainee.train_from_iterator(documents, trainer)
    trainee.add_special_tokens(specials)
    if kind == "llama3":
        first = specials[0]
        trainee.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, trainee.token_to_id(first))]
        )
    trainee.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ENDS[kind], "chat_template": TEMPLATE}
    if kind == "llama3":
        config["bos_token"] = specials[0]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    end = trainee.token_to_id(ENDS[kind])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))


def save_tiny(directory: Path, family: str, documents: list[str], sentencepiece_model: bytes) -> Any:
    config, kind = MODELS[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    if kind == "sentencepiece":
        (directory / "tokenizer.model").write_bytes(sentencepiece_model)
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        settings |= {"unk_token": "<unk>", "add_bos_token": True, "legacy": True, "chat_template": TEMPLATE}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        byte_level_files(directory, kind, documents[:400])
    return model

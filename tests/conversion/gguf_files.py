"""GGUF files of tiny Llamas, as llama.cpp's convert_hf_to_gguf.py writes them; and llama.cpp itself, to read them."""

import ctypes
import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece

K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
"""What the `gguf` package reads and cannot write."""

Vocabulary = Callable[[gguf.GGUFWriter], None]
"""Adds a tokenizer's fields."""


def byte_level_vocabulary(source: Path, size: int, template: str) -> Vocabulary:
    """The vocabulary of a directory's `tokenizer.json` (SmolLM's kind), filled up to the size."""
    document = json.loads((source / "tokenizer.json").read_text())
    ids = document["model"]["vocab"] | {token["content"]: token["id"] for token in document["added_tokens"]}
    names = sorted(ids, key=ids.__getitem__)
    names += [f"[PAD{number}]" for number in range(len(names), size)]
    specials = {token["content"] for token in document["added_tokens"]}

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(names)
        writer.add_token_types([3 if name in specials else 5 if name.startswith("[PAD") else 1 for name in names])
        writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
        writer.add_eos_token_id(ids["<|im_end|>"])
        writer.add_chat_template(template)

    return add


def sentencepiece_vocabulary(
    model: bytes,
    size: int,
    added: Mapping[str, gguf.TokenType] | None = None,
    change: Callable[[list[str], list[float], list[int]], None] = lambda *lists: None,
    **fields: Any,
) -> Vocabulary:
    """The vocabulary of a `tokenizer.model`, filled up to the size; the steps are `_create_vocab_sentencepiece`'s.

    `change` changes the lists before they are written; `fields` are more of the writer's `add_…` methods.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names, scores, kinds = [], [], []
    for number in range(processor.get_piece_size()):
        kind = gguf.TokenType.NORMAL
        if processor.is_unknown(number):
            kind = gguf.TokenType.UNKNOWN
        elif processor.is_control(number):
            kind = gguf.TokenType.CONTROL
        elif processor.is_byte(number):
            kind = gguf.TokenType.BYTE
        names.append(processor.id_to_piece(number))
        scores.append(processor.get_score(number))
        kinds.append(kind)
    for name, kind in (added or {}).items():
        names.append(name)
        scores.append(-1000.0)
        kinds.append(kind)
    for number in range(len(names), size):
        names.append(f"[PAD{number}]")
        scores.append(-10000.0)
        kinds.append(gguf.TokenType.UNUSED)
    change(names, scores, kinds)

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(names)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        for name, value in fields.items():
            getattr(writer, f"add_{name}")(value)

    return add


def write_gguf(
    path: Path, model: Any, kind: str, vocabulary: Vocabulary, more: Mapping[str, np.ndarray] | None = None
) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary(writer)
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in outside:
            number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(parts[part])
            if heads:
                value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        written = outside.get(name) or f"blk.{number}.{parts[part]}.weight"
        stored = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        writer.add_tensor(written, quantized(value, stored), raw_dtype=stored)
    for name, value in (more or {}).items():
        writer.add_tensor(name, value)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tensor(path: Path, content: np.ndarray, kind: str = "F32", architecture: str = "llama") -> None:
    """A file of one tensor, token_embd.weight, and no metadata but the architecture."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", content, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)


def quantized(value: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A tensor's blocks: by the `gguf` package, or by llama.cpp for those that the package cannot write."""
    if kind.name not in K_QUANTS:
        return gguf.quants.quantize(value, kind)
    rows, width = value.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.empty((rows, width // block * size), np.uint8)
    library, content = llama_library(), np.ascontiguousarray(value, np.float32)
    # size_t ggml_quantize_chunk(type, const float * src, void * dst, start, nrows, n_per_row, const float * imatrix)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    written = library.ggml_quantize_chunk(kind, content.ctypes.data, blocks.ctypes.data, 0, rows, width, None)
    assert written == blocks.nbytes
    return blocks


def dequantized_by_llama(blocks: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows of blocks as llama.cpp's `dequantize_row_…` reads them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    value = np.empty((len(blocks), blocks.shape[1] // size * block), np.float32)
    convert = getattr(llama_library(), f"dequantize_row_{kind.name[:2].lower()}{kind.name[2:]}")
    convert.restype, convert.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    convert(blocks.ctypes.data, value.ctypes.data, value.size)
    return value


def llama_library() -> ctypes.CDLL:
    """llama.cpp's functions of C, which the extension module of the `xllamacpp` wheel exports."""
    import xllamacpp.xllamacpp

    return ctypes.CDLL(xllamacpp.xllamacpp.__file__)


class Llama:
    """llama.cpp's server with a model, inside this process."""

    def __init__(self, path: Path):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel, parameters.n_ctx, parameters.warmup = 1, 64, False
        # What is kept of keys and values is not rounded, so that the numbers can be compared.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def answer(self, path: str, **request: Any) -> Any:
        address = f"{self.server.listening_address}{path}"
        content = urllib.request.Request(address, json.dumps(request).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(content, timeout=60) as answer:
            return json.load(answer)

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Of every token after the ids, before the bias: the server says none where the next token is half a letter."""
        request = {"n_predict": 1, "n_probs": 10_000, "temperature": 0, "cache_prompt": False}
        readable = {"logit_bias": [[int(ids[-1]), 1000]]}
        (listed,) = self.answer("/completion", prompt=ids.tolist(), **request, **readable)["completion_probabilities"]
        found = np.full(len(listed["top_logprobs"]), np.nan)
        for entry in listed["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

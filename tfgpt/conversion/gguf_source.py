"""GGUF files: model and tokenizer as one source."""

from __future__ import annotations

from pathlib import Path

from tfgpt.common.errors import UserError
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.gguf import GGUFFile, open_gguf_model
from tfgpt.tokenization import gguf_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer, pretrained_sentencepiece
from tfgpt.tokenization.special_tokens import choose_special_tokens
from tfgpt.tokenization.tokenizer import Tokenizer


def open_gguf(path: Path) -> Source:
    """Opens a GGUF file."""
    file = GGUFFile(path)
    checkpoint = open_gguf_model(file)
    kind = file.required("tokenizer.ggml.model")
    open_tokenizer = {"gpt2": byte_level_tokenizer, "llama": sentencepiece_tokenizer}.get(kind)
    if open_tokenizer is None:
        supported = "only 'gpt2' (byte-level BPE) and 'llama' (SentencePiece BPE)"
        raise UserError(f"{path}: tokenizer.ggml.model={kind!r} is not supported, {supported}")
    try:
        tokenizer = open_tokenizer(file)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error
    general = {name: value for name, value in file.metadata.items() if name.startswith("general.")}
    types = sorted({tensor.tensor_type.name for tensor in file.tensors.values()})
    title, licence = general.get("general.name", path.name), general.get("general.license", "not said")
    description = f"{title} (GGUF: {', '.join(types)}; licence {licence})"
    return Source(description, checkpoint, tokenizer, {"format": "GGUF", "types": types, **general})


def byte_level_tokenizer(file: GGUFFile) -> Tokenizer:
    path, metadata = str(file.path), file.metadata
    document = gguf_tokenizer.gguf_document(metadata, file.long_field, path)
    names = gguf_tokenizer.token_names(metadata, file.long_field("tokenizer.ggml.tokens"))
    roles = choose_special_tokens(
        {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]},
        end=names.get("eos_token"),
        padding=names.get("pad_token"),
        start_of_text=names.get("bos_token") if gguf_tokenizer.begins_with_bos(metadata) else None,
        chat_template=names.get("chat_template", ""),
        stop_ids=gguf_tokenizer.stop_ids(metadata),
    )
    return Tokenizer(document, path, roles, names)


def sentencepiece_tokenizer(file: GGUFFile) -> SentencePieceTokenizer:
    path, metadata = str(file.path), gguf_tokenizer.with_default_ids(file.metadata)
    model, pieces = gguf_tokenizer.gguf_sentencepiece_model(metadata, file.long_field, path)
    config = gguf_tokenizer.token_names(metadata, pieces) | {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": gguf_tokenizer.begins_with_bos(metadata),
        "add_prefix_space": bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
    }
    return pretrained_sentencepiece(model, path, config, gguf_tokenizer.stop_ids(metadata))

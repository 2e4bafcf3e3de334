"""GGUF files as a source."""

from __future__ import annotations

from pathlib import Path

from tfgpt.common.errors import UserError
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.gguf import GGUFFile, open_gguf_model
from tfgpt.tokenization import gguf_vocabulary
from tfgpt.tokenization.roles import choose_roles
from tfgpt.tokenization.tokenizer import Tokenizer


def open_gguf(path: Path) -> Source:
    """A GGUF file with model and tokenizer.

    Raises:
        UserError: it is damaged, or holds something that we cannot compute.
    """
    file = GGUFFile(path)
    checkpoint = open_gguf_model(file)
    kind = file.needed("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(f"{path}: tokenizer.ggml.model={kind!r} is not supported, only 'gpt2' (byte-level BPE)")
    document = gguf_vocabulary.gguf_document(file.metadata, file.long_field, str(path))
    tokens = file.long_field("tokenizer.ggml.tokens")
    names = gguf_vocabulary.token_names(file.metadata, tokens)
    try:
        roles = choose_roles(
            [token["content"] for token in document["added_tokens"] if token["special"]],
            end=names.get("eos_token"),
            padding=names.get("pad_token"),
            start_of_text=names.get("bos_token") if gguf_vocabulary.begins_with_start(file.metadata) else None,
            chat_template=names.get("chat_template", ""),
            more_ends=[tokens[end] for end in gguf_vocabulary.stop_ids(file.metadata) if end < len(tokens)],
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    general = {name: value for name, value in file.metadata.items() if name.startswith("general.")}
    types = sorted({tensor.tensor_type.name for tensor in file.tensors.values()})
    title = general.get("general.name", path.name)
    return Source(
        f"{title} (GGUF: {', '.join(types)}; licence {general.get('general.license', 'not said')})",
        checkpoint,
        Tokenizer(document, str(path), roles, names),
        {"format": "GGUF", "types": types, **general},
    )

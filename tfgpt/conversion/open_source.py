"""Opens source models of all formats."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from tfgpt.common.adapters import ADAPTER_CONFIG, base_name, is_adapter
from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import FoundModel, find_model, no_weights_error
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.hugging_face_source import download, open_hugging_face, stop_ids
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.gguf import GGUFFile, open_gguf_model
from tfgpt.model.checkpoints.huggingface import open_model
from tfgpt.model.checkpoints.keras_hub import open_keras_hub_model
from tfgpt.tokenization import gguf_tokenizer
from tfgpt.tokenization.hugging_face_tokenizer import load_hugging_face_tokenizer
from tfgpt.tokenization.keras_hub_tokenizer import load_keras_hub_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer, pretrained_sentencepiece
from tfgpt.tokenization.special_tokens import choose_special_tokens
from tfgpt.tokenization.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_source(found: FoundModel, flag: str, convert_base: Callable[[str, str], Path]) -> Source:
    """Opens a model without reading its weights.

    Args:
        convert_base: converts the base of an adapter: (name, flag) → model directory.
    """
    if found.kind == "export":
        raise no_weights_error(found, flag)
    if found.kind == "GGUF file":
        return open_gguf(found.path)
    if found.kind == "KerasHub preset":
        return open_preset(found.path)
    path, provenance = found.path, {}
    if found.kind == "hub name":
        path = download(found.path.as_posix(), flag)
        provenance = {"hub": found.path.as_posix(), "revision": path.name}
    return open_adapter(path, convert_base) if is_adapter(path) else open_hugging_face(path, provenance)


def open_adapter(directory: Path, convert_base: Callable[[str, str], Path]) -> Source:
    """Opens an adapter and its base as one model; the weights are merged when they are read."""
    base = adapter_base(directory, convert_base)
    checkpoint = open_model(directory, base=base)
    json = read_json(base / "config.json")
    has_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = load_hugging_face_tokenizer(
        directory if has_tokenizer else base, str(json.get("model_type")), stop_ids(base, json)
    )
    name = base_name(directory)
    description = f"{directory} (LoRA adapter of {name}, merged)"
    provenance = {"format": "PEFT", "base": name, "model_type": json.get("model_type")}
    return Source(description, checkpoint, tokenizer, provenance)


def adapter_base(directory: Path, convert_base: Callable[[str, str], Path]) -> Path:
    """Returns the Hugging Face directory of an adapter's base: a local, downloaded or converted one."""
    name, path = base_name(directory), directory / ADAPTER_CONFIG
    relative = directory / name
    try:
        found = find_model(str(relative) if relative.exists() and not Path(name).exists() else name, "model")
        if found.kind == "model directory":
            return found.path
        if found.kind == "hub name":
            return download(found.path.as_posix(), "model")
        return convert_base(found.name, "model")
    except UserError as error:
        problem = str(error).removeprefix("--model: ")
        raise UserError(
            f"{path}: base_model_name_or_path: {problem}; write the path of the base model there"
        ) from error


def open_preset(directory: Path) -> Source:
    if importlib.util.find_spec("keras_hub") is None:
        raise UserError("the package keras-hub is missing, which reads presets; pip install keras-hub")
    version = read_json(directory / "metadata.json").get("keras_hub_version", "?")
    tokenizer = load_keras_hub_tokenizer(directory)
    import_tensorflow()
    checkpoint = open_keras_hub_model(directory)
    class_name = read_json(directory / "config.json")["class_name"]
    provenance = {"format": "KerasHub", "class_name": class_name, "keras_hub_version": version}
    return Source(f"{directory} (KerasHub {version}, {class_name})", checkpoint, tokenizer, provenance)


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

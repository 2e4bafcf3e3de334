"""Hugging Face directories, and downloads from the Hugging Face hub."""

from __future__ import annotations

import functools
import importlib.util
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.adapters import ADAPTER_CONFIG
from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.huggingface import load_config, load_stop_ids, open_model
from tfgpt.tokenization.hugging_face_tokenizer import load_hugging_face_tokenizer

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
"""The files that are read from a directory and downloaded from a repository."""

CONNECT_SECONDS = 10.0

PROVENANCE_KEYS = ("_name_or_path", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype")
"""Keys of config.json that training.json keeps."""


def open_hugging_face(directory: Path, provenance: dict[str, Any] | None = None) -> Source:
    """Opens a directory with config.json, safetensors files and a tokenizer."""
    load_config(directory)  # An unsupported model is refused before its other files are read.
    if not list(directory.glob("*.safetensors")):
        pickled = next(directory.glob("pytorch_model*.bin"), None)
        if pickled:
            raise UserError(f"{pickled}: pickled weights can run code and are not read; save as safetensors first")
        raise UserError(f"{directory}: there are no weights in it (model.safetensors)")
    checkpoint = open_model(directory)
    json = read_json(directory / "config.json")
    tokenizer = load_hugging_face_tokenizer(directory, str(json.get("model_type")), stop_ids(directory, json))
    kept = {key: json[key] for key in PROVENANCE_KEYS if json.get(key) is not None}
    description = f"{directory} (Hugging Face, {json['model_type']}, {checkpoint.dtype.name})"
    return Source(description, checkpoint, tokenizer, {"format": "Hugging Face", **kept, **(provenance or {})})


def stop_ids(directory: Path, json: Mapping[str, Any]) -> list[int]:
    """Returns the end tokens of generation_config.json, then those of config.json."""
    ends = json.get("eos_token_id")
    return load_stop_ids(directory) + (ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else [])


def download(name: str, flag: str) -> Path:
    """Downloads a model or an adapter from the Hugging Face hub, or finds it in the local cache.

    The environment variables HF_ENDPOINT, HF_HOME and HF_TOKEN name the address, the cache and the access token.

    Returns:
        The folder of the snapshot; its name is the revision.

    Raises:
        UserError: the repository does not exist or cannot be reached, or its model is not supported. Only config.json
            is downloaded of an unsupported model.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("the package huggingface-hub is missing, which downloads; pip install 'tfgpt[convert]'")
    from huggingface_hub import constants

    return snapshot(name, flag, constants.ENDPOINT, constants.HF_HUB_CACHE)


@functools.cache
def snapshot(name: str, flag: str, endpoint: str, cache: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    huggingface_hub.logging.set_verbosity_error()
    offline = not reachable(endpoint)  # huggingface_hub's own attempts time out after half a minute.
    try:
        try:
            config = huggingface_hub.hf_hub_download(name, "config.json", local_files_only=offline)
            load_config(Path(config).parent)
        except errors.LocalEntryNotFoundError:  # A subclass of EntryNotFoundError: the hub did not answer.
            huggingface_hub.hf_hub_download(name, ADAPTER_CONFIG, local_files_only=True)
        except errors.EntryNotFoundError:
            huggingface_hub.hf_hub_download(name, ADAPTER_CONFIG)
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, local_files_only=offline))
    except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--{flag}: {name} {describe_error(error, name, endpoint)}") from error


def reachable(endpoint: str) -> bool:
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies():
        return True
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def describe_error(error: Exception, name: str, endpoint: str) -> str:
    from huggingface_hub import errors  # Subclasses come before their base classes.

    if isinstance(error, errors.LocalEntryNotFoundError):
        return "is not here, and the Hugging Face hub cannot be reached"
    if isinstance(error, errors.EntryNotFoundError):
        return "has no config.json on the Hugging Face hub; download one of its GGUF files and give that"
    if isinstance(error, errors.GatedRepoError):
        return f"is given out on conditions: accept them at {endpoint}/{name}, then set HF_TOKEN to your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not here, and not a model on the Hugging Face hub"
    return f"is not here, and cannot be downloaded ({' '.join(str(error).split())[:200]})"

"""Hugging Face directories as a source, and models on the Hugging Face hub."""

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
from tfgpt.tokenization.hugging_face_tokenizer import open_tokenizer

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
"""What is read of a directory, and downloaded of a repository."""

CONNECT_SECONDS = 10.0

KEPT = ("_name_or_path", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype")
"""What training.json keeps of config.json."""


def open_hugging_face(directory: Path, provenance: dict[str, Any] | None = None) -> Source:
    """A directory with config.json, safetensors and a tokenizer.

    Raises:
        UserError: something is missing, damaged, or nothing that we can compute.
    """
    load_config(directory)  # What cannot be computed is refused before anything else is looked at.
    if not list(directory.glob("*.safetensors")):
        pickled = next(directory.glob("pytorch_model*.bin"), None)
        if pickled:
            raise UserError(f"{pickled}: pickled weights can run code and are not read; save as safetensors first")
        raise UserError(f"{directory}: there are no weights in it (model.safetensors)")
    checkpoint = open_model(directory)
    json = read_json(directory / "config.json")
    tokenizer = open_tokenizer(directory, str(json.get("model_type")), stop_ids(directory, json))
    kept = {key: json[key] for key in KEPT if json.get(key) is not None}
    kind = f"{directory} (Hugging Face, {json['model_type']}, {checkpoint.dtype.name})"
    return Source(kind, checkpoint, tokenizer, {"format": "Hugging Face", **kept, **(provenance or {})})


def stop_ids(directory: Path, json: Mapping[str, Any]) -> list[int]:
    """What ends a text, as generation_config.json and config.json say."""
    ends = json.get("eos_token_id")
    return load_stop_ids(directory) + (ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else [])


def download(name: str, flag: str) -> Path:
    """A model of the Hugging Face hub, or of its local cache: the folder whose name is the revision's.

    The network address is the environment variable HF_ENDPOINT's, the cache HF_HOME's; private models need HF_TOKEN.

    Args:
        name: the repository's; it holds a model or an adapter.
        flag: which named it, for messages.

    Raises:
        UserError: there is no such model, or no network. A model that cannot be computed is refused when no more than
            its config.json is downloaded.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("the package huggingface-hub is missing, which downloads; pip install 'tfgpt[convert]'")
    from huggingface_hub import constants

    return snapshot(name, flag, constants.ENDPOINT, constants.HF_HUB_CACHE)


@functools.cache
def snapshot(name: str, flag: str, endpoint: str, cache: str) -> Path:
    """As `download`; the hub is asked once in a process."""
    import huggingface_hub
    from huggingface_hub import errors

    huggingface_hub.logging.set_verbosity_error()
    here = not reachable(endpoint)  # Its own attempts to reach a hub take half a minute to give up.
    try:
        try:
            config = huggingface_hub.hf_hub_download(name, "config.json", local_files_only=here)
            load_config(Path(config).parent)
        except errors.LocalEntryNotFoundError:  # One of the next kind, and no answer at all.
            huggingface_hub.hf_hub_download(name, ADAPTER_CONFIG, local_files_only=True)
        except errors.EntryNotFoundError:
            huggingface_hub.hf_hub_download(name, ADAPTER_CONFIG)
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, local_files_only=here))
    except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--{flag}: {name} {problem_of(error, name, endpoint)}") from error


def reachable(endpoint: str) -> bool:
    """Whether anything listens at a hub's address; behind a proxy it is taken to do so."""
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies():
        return True
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def problem_of(error: Exception, name: str, endpoint: str) -> str:
    """What went wrong with a download, in words; the kinds of errors that are one of another kind come first."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return "is not here, and the Hugging Face hub cannot be reached"
    if isinstance(error, errors.EntryNotFoundError):
        return "has no config.json on the Hugging Face hub; of GGUF files, download one and give that"
    if isinstance(error, errors.GatedRepoError):
        return f"is given out on conditions: accept them at {endpoint}/{name}, then set HF_TOKEN to a token of yours"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not here, and no model on the Hugging Face hub"
    return f"is not here, and cannot be downloaded ({' '.join(str(error).split())[:200]})"

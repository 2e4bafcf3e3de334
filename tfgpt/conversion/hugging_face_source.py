"""Hugging Face directories as a source, and models on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.common.files import read_json
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.huggingface import load_config, load_stop_ids, open_model
from tfgpt.tokenization.hugging_face_files import open_tokenizer

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""A repository's name."""

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
"""What is downloaded of one."""

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
    ends = json.get("eos_token_id")
    ends = load_stop_ids(directory) + (ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else [])
    tokenizer = open_tokenizer(directory, str(json.get("model_type")), ends)
    kept = {key: json[key] for key in KEPT if json.get(key) is not None}
    kind = f"{directory} (Hugging Face, {json['model_type']}, {checkpoint.dtype.name})"
    return Source(kind, checkpoint, tokenizer, {"format": "Hugging Face", **kept, **(provenance or {})})


def open_hub(name: str) -> Source:
    """A model on the Hugging Face hub, or of its local cache.

    The network address is the environment variable HF_ENDPOINT's, the cache HF_HOME's; private models need HF_TOKEN.

    Raises:
        UserError: there is no such model, or no network; or as `open_hugging_face`. A model that cannot be computed is
            refused when no more than its config.json is downloaded.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("the package huggingface-hub is missing, which downloads; pip install 'tfgpt[convert]'")
    import huggingface_hub
    import huggingface_hub.errors

    try:
        load_config(Path(huggingface_hub.hf_hub_download(name, "config.json")).parent)
        directory = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except huggingface_hub.errors.LocalEntryNotFoundError as error:  # One of the next kind, and no answer at all.
        raise UserError(
            f"--source: {name} is no directory or .gguf file here, and the Hugging Face hub cannot be reached"
        ) from error
    except huggingface_hub.errors.EntryNotFoundError as error:
        raise UserError(f"--source: {name} has no config.json on the Hugging Face hub") from error
    except huggingface_hub.errors.GatedRepoError as error:  # One of the next kind.
        raise UserError(
            f"--source: {name} is given out on conditions: accept them at {huggingface_hub.constants.ENDPOINT}/{name}, "
            "then set HF_TOKEN to a token of yours"
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"--source: {name} is no directory, no .gguf file and no model on the Hugging Face hub"
        ) from error
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--source: {name} is no directory or .gguf file here, and cannot be downloaded ({reason})"
        ) from error
    return open_hugging_face(directory, {"hub": name, "revision": directory.name})

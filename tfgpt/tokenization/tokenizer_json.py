"""The `tokenizer.json` format: writes byte-level BPE tokenizers, and reads those that are lossless."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tfgpt.common.atomic_files import refuse_pointer
from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import UserError
from tfgpt.tokenization.pretokenizer import (
    BYTE_OF_CHARACTER,
    DECODER,
    FAMILIES,
    PRE_TOKENIZER,
    byte_alphabet,
    pre_tokenizers,
)
from tfgpt.tokenization.special_tokens import KNOWN_NAMES, SPECIAL_TOKENS

LOSSLESS_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Punctuation", "Split", "UnicodeScripts")
"""Pre-tokenizers that only cut. Split and Punctuation can also remove text, which is checked for each."""

MOST_MISSING_BYTES = 64
"""A vocabulary in which more bytes have no token is not byte-level."""


def added_token(identifier: int, content: str) -> dict[str, Any]:
    """Returns a special token as `tokenizer.json` writes it."""
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": identifier, "content": content, **options, "special": True}


def new_document(merges: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Returns a `tokenizer.json` with ids 0 to 255 for the bytes, followed by the merges and the special tokens.

    A pair whose result exists takes no new id.
    """
    alphabet = byte_alphabet()
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    pairs = []
    for pair in merges:
        left, right = ("".join(alphabet[byte] for byte in token) for token in pair)
        pairs.append([left, right])
        vocabulary.setdefault(left + right, len(vocabulary))
    added = [added_token(len(vocabulary) + number, name) for number, name in enumerate(SPECIAL_TOKENS)]
    return bpe_document(None, vocabulary, pairs, added)


def bpe_document(
    family: str | None,
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Returns a `tokenizer.json` with byte-level BPE.

    Args:
        family: a key of `pretokenizer.FAMILIES`; None for our own pre-tokenizer.
        vocabulary: token in the byte alphabet → id; the tokens of `added` can be missing.
        merges: pairs in order of rank.
        added: results of `added_token`, in the order of their ids.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"} if family == "qwen2" else None,
        "pre_tokenizer": FAMILIES[family] if family else PRE_TOKENIZER,
        "post_processor": None,
        "decoder": DECODER,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": family == "llama3",
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def read_document(path: Path, complete: bool = True) -> dict[str, Any]:
    """Reads a `tokenizer.json` and checks that it is lossless.

    Args:
        path: the file, or the directory that holds it.
        complete: whether to remove the defaults of other programs (truncation, padding, a post-processor that adds
            special tokens) and to add missing special tokens after the last id. False returns the content unchanged.
    """
    if path.is_dir():
        path = path / "tokenizer.json"
    refuse_pointer(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{no_such_file(path)} (a tokenizer is a tokenizer.json)") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a tokenizer.json ({error})") from error
    try:
        reason = lossy_reason(document, every_byte=complete)
        if reason:
            raise UserError(f"{path}: {reason}")
        if complete:
            document = {**document, "truncation": None, "padding": None, "post_processor": None}
            document = _with_special_tokens(document, path)
        # `tokenizers` raises plain Exceptions for merges of unknown tokens and other damage.
        reference = tokenizers.Tokenizer.from_str(json.dumps(document))
        for token in document["added_tokens"]:
            name, found = token["content"], reference.token_to_id(token["content"])
            if found != token["id"]:
                raise UserError(f"{path}: the id of {name} is {token['id']}, but `tokenizers` makes it {found}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: is not a complete tokenizer.json ({type(error).__name__}: {error})") from error
    return document


def lossy_reason(document: dict[str, Any], every_byte: bool = True) -> str | None:
    """Returns why the tokenizer loses text, or None.

    Without `every_byte`, bytes may have no token (SmolLM2 has none for 21 rare bytes), and Qwen's NFC may change text.
    """
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return "is not a tokenizer.json (it has no model)"
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        return f"its model is {model['type']}, not BPE"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"its BPE model uses {option}, which is not supported"
    if document.get("normalizer") and (every_byte or document["normalizer"] != {"type": "NFC"}):
        return f"its normalizer ({document['normalizer'].get('type')}) changes text before it is encoded"
    missing = [byte for character, byte in BYTE_OF_CHARACTER.items() if character not in model["vocab"]]
    if len(missing) > (0 if every_byte else MOST_MISSING_BYTES):
        return f"it is not byte-level: {len(missing)} of the 256 bytes have no token (the first is {missing[0]})"
    names = {token["content"] for token in document.get("added_tokens") or ()}
    for token in model["vocab"]:
        if token not in names and not all(character in BYTE_OF_CHARACTER for character in token):
            return f"it is not byte-level: the token {token!r} is not written in the byte alphabet"
    if (document.get("decoder") or {}).get("type") not in ("ByteLevel", "Sequence"):
        return "its decoder is not ByteLevel"
    steps = pre_tokenizers(document)
    if not any(step["type"] == "ByteLevel" for step in steps):
        return "its pre-tokenizer has no ByteLevel step"
    for step in steps:
        if step["type"] not in LOSSLESS_PRE_TOKENIZERS or step.get("behavior") == "Removed":
            return f"its pre-tokenizer step {step['type']} loses text"
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return "its pre-tokenizer adds a space before every text (add_prefix_space)"
    return None


def rank_order_is_merge_order(merges: Sequence[tuple[int, int, int]]) -> bool:
    """Returns whether repeatedly joining all occurrences of the pair of lowest rank is equivalent to BPE.

    It is if the tokens of every pair are made only by merges of lower rank: then a new pair never has a lower rank than
    the merge that made it.
    """
    last_rank = {result: rank for rank, (_, _, result) in enumerate(merges)}
    return all(last_rank.get(token, -1) < rank for rank, pair in enumerate(merges) for token in pair[:2])


def added_tokens_limitation(document: Mapping[str, Any]) -> str | None:
    """Returns why `in_graph` cannot find the added tokens of a `tokenizer.json` in texts, or None."""
    tokens = [token for token in document["added_tokens"] if not token["special"]]
    for token in tokens:
        name = token["content"]
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word") or not name:
            return f"it looks for the added token {name!r} together with the text around it"
        if document.get("normalizer") and token.get("normalized"):
            return f"it looks for the added token {name!r} in normalized text"
        for other in tokens:
            second = other["content"]
            if any(second.startswith(name[start : start + len(second)]) for start in range(1, len(name))):
                return f"it looks for added tokens in the text that may overlap, as {name!r} and {second!r}"
    return None


def merges_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the merges, in the byte alphabet, in order of rank, from both forms of the format."""
    return [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else (merge[0], merge[1])  # type: ignore[misc]
        for merge in document["model"]["merges"]
    ]


def special_token_names(document: dict[str, Any]) -> dict[str, str]:
    """Returns our name → the file's name, for those of our special tokens that the file has."""
    merged = {left + right for left, right in merges_of(document)}
    names = {token["content"] for token in document.get("added_tokens") or ()}
    names |= {name for name in document["model"]["vocab"] if name not in merged}
    found = {ours: next((name for name in known if name in names), None) for ours, known in KNOWN_NAMES.items()}
    return {ours: name for ours, name in found.items() if name is not None}


def _with_special_tokens(document: dict[str, Any], path: Path) -> dict[str, Any]:
    vocabulary = document["model"]["vocab"]
    added = {token["content"]: dict(token) for token in document.get("added_tokens") or ()}
    for token in added.values():
        # These would remove the spaces around a special token. `normalized` has no effect without a normalizer.
        token.update(lstrip=False, rstrip=False, single_word=False)
    found = special_token_names(document)
    used = {*vocabulary.values(), *(token["id"] for token in added.values())}
    for ours in SPECIAL_TOKENS:
        name = found.get(ours, ours)
        if name in added:
            added[name]["special"] = True
        elif name in vocabulary and ours in found:
            added[name] = added_token(vocabulary[name], name)
        elif name in vocabulary:
            raise UserError(f"{path}: {name} is an ordinary token there, but it has to be a special one")
        else:
            added[name] = added_token(max(used) + 1, name)
            used.add(max(used) + 1)
    if used != set(range(len(used))):
        missing = next(identifier for identifier in range(len(used) + 1) if identifier not in used)
        raise UserError(f"{path}: its ids have gaps (the first without a token is {missing})")
    return {**document, "added_tokens": sorted(added.values(), key=lambda token: token["id"])}

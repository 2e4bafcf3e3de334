"""The `tokenizer.json` format: making ours, reading any byte-level BPE one, refusing what would not be lossless."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tfgpt.common.atomic_files import refuse_pointer
from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import UserError
from tfgpt.tokenization.config import SPECIAL_TOKENS
from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER, DECODER, PRE_TOKENIZER, byte_alphabet
from tfgpt.tokenization.pretrained_pretokenizers import FAMILIES

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "<|endoftext|>": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "<|padding|>": ("<|padding|>", "<|pad|>", "<pad>", "<PAD>", "[PAD]", "<|finetune_right_pad_id|>"),
    "<|im_start|>": ("<|im_start|>",),
    "<|im_end|>": ("<|im_end|>",),
}
"""For each of our special tokens, the names under which a foreign file may have it, best first."""

LOSSLESS_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Punctuation", "Split", "UnicodeScripts")
"""Pre-tokenizers that only cut; Split and Punctuation may also remove, which is looked at one by one."""


MOST_MISSING_BYTES = 64
"""With more bytes without a token, a vocabulary is not of the byte-level kind."""


def added_token(identifier: int, content: str) -> dict[str, Any]:
    """One special token as `tokenizer.json` writes it."""
    return {
        "id": identifier,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def new_document(merges: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """The content of a `tokenizer.json` of ours: ids 0…255 are the bytes, then a merge an id, then the specials.

    Args:
        merges: pairs of tokens in the order of their ranks; a pair whose result exists already takes no new id.

    Returns:
        The JSON object.
    """
    alphabet = byte_alphabet()
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    pairs = []
    for pair in merges:
        left, right = ("".join(alphabet[byte] for byte in token) for token in pair)
        pairs.append([left, right])
        vocabulary.setdefault(left + right, len(vocabulary))
    added = [added_token(len(vocabulary) + number, name) for number, name in enumerate(SPECIAL_TOKENS)]
    return bpe_document(vocabulary, pairs, added, PRE_TOKENIZER)


def byte_level_document(
    family: str, vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], added: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of a `tokenizer.json` of a pretrained model's tokenizer that came in another form.

    Args:
        family: of `pretrained_pretokenizers.FAMILIES`.
        vocabulary: token in the byte alphabet → id; those of `added` may be missing.
        merges: pairs in order of rank.
        added: as `added_token` makes them, in the order of their ids.
    """
    normalizer = {"type": "NFC"} if family == "qwen2" else None
    return bpe_document(vocabulary, merges, added, FAMILIES[family], normalizer, ignore_merges=family == "llama3")


def bpe_document(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[dict[str, Any]],
    pre_tokenizer: Any,
    normalizer: dict[str, Any] | None = None,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """The content of a `tokenizer.json` of a byte-level BPE tokenizer; the arguments are its parts."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
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
            "ignore_merges": ignore_merges,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def read_document(path: Path, complete: bool = True) -> dict[str, Any]:
    """Reads a `tokenizer.json` and makes it fit the promises, or says why it cannot.

    Args:
        path: the file, or a directory that holds `tokenizer.json`.
        complete: what only matters to other programs' defaults (truncation, padding, a post-processor that adds special
            tokens) is left out; special tokens of ours that the file lacks under any known name are added behind its
            last id. Otherwise the content is left as it is.

    Returns:
        The JSON object.

    Raises:
        UserError: no such file, not JSON, or not a lossless byte-level BPE tokenizer; one line with path and reason.
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
        reason = why_not_lossless(document, every_byte=complete)
        if reason:
            raise UserError(f"{path}: {reason}")
        if complete:
            document = {**document, "truncation": None, "padding": None, "post_processor": None}
            document = with_special_tokens(document, path)
        # `tokenizers` raises plain Exceptions for merges of unknown tokens and the like.
        check_ids(document, tokenizers.Tokenizer.from_str(json.dumps(document)), path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: is not a whole tokenizer.json ({type(error).__name__}: {error})") from error
    return document


def check_ids(document: dict[str, Any], reference: tokenizers.Tokenizer, path: Path) -> None:
    """Refuses added tokens to which `tokenizers` gives other ids than the file says."""
    for token in document["added_tokens"]:
        found = reference.token_to_id(token["content"])
        if found != token["id"]:
            raise UserError(f"{path}: the id of {token['content']} is {token['id']}, but `tokenizers` makes it {found}")


def why_not_lossless(document: dict[str, Any], every_byte: bool = True) -> str | None:
    """Why ids of this tokenizer would not give every text back, or None when they would.

    Without `every_byte`, bytes that were never seen in training may lack a token (SmolLM2 has none for 21 bytes, most
    of which occur in no UTF-8 text): they are dropped, as `tokenizers` drops them; and Qwen's NFC may write text anew.
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
    return why_pre_tokenizer_loses(pre_tokenizers(document))


def why_pre_tokenizer_loses(steps: Sequence[dict[str, Any]]) -> str | None:
    """Why these pre-tokenization steps lose text, or None."""
    if not any(step["type"] == "ByteLevel" for step in steps):
        return "its pre-tokenizer has no ByteLevel step"
    for step in steps:
        if step["type"] not in LOSSLESS_PRE_TOKENIZERS or step.get("behavior") == "Removed":
            return f"its pre-tokenizer step {step['type']} loses text"
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return "its pre-tokenizer adds a space before every text (add_prefix_space)"
    return None


def pre_tokenizers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenization steps in order."""
    step = document.get("pre_tokenizer")
    if not step:
        return []
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [step]


def family_of(document: Mapping[str, Any]) -> str | None:
    """The family whose pre-tokenizer a `tokenizer.json` has, or None."""

    def steps(pre_tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
        # Offsets play no part, and ByteLevel cuts by itself where older files do not say.
        found = pre_tokenizers({"pre_tokenizer": pre_tokenizer})
        return [{"use_regex": True, **step, "trim_offsets": True} for step in found]

    own = steps(document.get("pre_tokenizer") or {})
    return next((name for name, family in FAMILIES.items() if steps(family) == own), None)


def in_order(merges: Sequence[tuple[int, int, int]]) -> bool:
    """Whether joining all occurrences of the pair of lowest rank, again and again, is what BPE does.

    It is where a pair's two tokens can only have been made by merges of lower rank: then no new pair is of lower rank
    than the one that made it.

    Args:
        merges: (left id, right id, id of the result) in order of rank.
    """
    made = {result: rank for rank, (_, _, result) in enumerate(merges)}  # the last merge that makes it
    return all(made.get(token, -1) < rank for rank, pair in enumerate(merges) for token in pair[:2])


def why_not_found(document: Mapping[str, Any]) -> str | None:
    """Why `in_graph_added` cannot look for the tokens that a `tokenizer.json` says are in texts; None when it can."""
    tokens = [token for token in document["added_tokens"] if not token["special"]]
    for token in tokens:
        name = token["content"]
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word") or not name:
            return f"it looks for the added token {name!r} together with what is around it"
        if document.get("normalizer") and token.get("normalized"):
            return f"it looks for the added token {name!r} in normalized text"
        for other in tokens:
            second = other["content"]
            if any(second.startswith(name[place : place + len(second)]) for place in range(1, len(name))):
                return f"it looks for added tokens in the text that may overlap, as {name!r} and {second!r}"
    return None


def merges_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, in the byte alphabet, in order of rank; both spellings of the format are read."""
    return [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else (merge[0], merge[1])  # type: ignore[misc]
        for merge in document["model"]["merges"]
    ]


def special_token_names(document: dict[str, Any]) -> dict[str, str]:
    """Our name → the file's name, for those of our special tokens that the file has."""
    merged = {left + right for left, right in merges_of(document)}
    added = {token["content"] for token in document.get("added_tokens") or ()}
    unmerged = {name for name in document["model"]["vocab"] if name not in merged}
    found: dict[str, str] = {}
    for ours, names in OTHER_NAMES.items():
        for name in names:
            if name in added or name in unmerged:
                found[ours] = name
                break
    return found


def with_special_tokens(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document in which each of our four special tokens is a special added token.

    Raises:
        UserError: the file's ids have gaps, so that nothing can be added behind them.
    """
    vocabulary = document["model"]["vocab"]
    added = {token["content"]: dict(token) for token in document.get("added_tokens") or ()}
    for token in added.values():
        # `normalized` is about normalizers, of which there is none; the others would swallow spaces around a special.
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

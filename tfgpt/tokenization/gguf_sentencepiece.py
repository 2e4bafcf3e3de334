"""The SentencePiece model of a GGUF file whose `tokenizer.ggml.model` is "llama", put together from its metadata.

A GGUF file has the pieces with their scores and kinds, but nothing of how the model was trained or rewrites texts.
llama.cpp runs all of them as BPE that changes only spaces (its `llm_tokenizer_spm`), and so does what is made here:
for Llama 2's and Mistral's kind of model that is what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.tokenization.sentencepiece_model import Kind, Piece, bpe_model
from tfgpt.tokenization.sentencepiece_tokenizer import BYTE_PIECE, SPACE

DEFAULT_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""What llama.cpp takes where a file does not say (`llama_vocab::impl::load`, LLAMA_VOCAB_TYPE_SPM)."""

FILLING = re.compile(r"\[PAD\d+\]")
"""What convert_hf_to_gguf.py calls the rows of a model that its tokenizer has no piece for."""


def with_default_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata, with the ids that llama.cpp takes for the unknown, first and last piece where it names none."""
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in DEFAULT_IDS.items()} | dict(metadata)


def gguf_sentencepiece_model(
    metadata: Mapping[str, Any], long_field: Callable[[str], list[Any]], origin: str
) -> tuple[bytes, list[str]]:
    """The SentencePiece model of a file.

    Args:
        metadata: the file's (`with_default_ids`), without its lists.
        long_field: gives `tokenizer.ggml.tokens` and the other lists.
        origin: what messages call the file.

    Returns:
        The content of a `tokenizer.model`, and its pieces' names by id. Names that only fill up the model's last rows
        are left out.

    Raises:
        UserError: the lists do not fit each other, or say of a model that is no BPE; the line says which.
    """
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise UserError(f"{origin}: tokenizer.ggml.{key} is not supported beside tokenizer.ggml.model='llama'")
    pieces = gguf_pieces(long_field, origin)
    ids = {
        name: metadata[key]
        for name in ("unknown", "bos", "eos", "padding", "eot", "eom")
        if 0 <= metadata.get(key := f"tokenizer.ggml.{name}_token_id", -1) < len(pieces)
    }
    # Converters that look into tokenizer_config.json write <unk> as a control token; some write all of them as normal.
    for name, number in ids.items():
        if pieces[number].kind in (Kind.NORMAL, Kind.USER_DEFINED, Kind.CONTROL):
            pieces[number] = pieces[number]._replace(kind=Kind.UNKNOWN if name == "unknown" else Kind.CONTROL)
    unknown = [number for number, piece in enumerate(pieces) if piece.kind == Kind.UNKNOWN]
    if len(unknown) != 1:
        raise UserError(f"{origin}: {len(unknown)} tokens are the unknown one (tokenizer.ggml.token_type), not one")
    ranks = [piece.score for piece in pieces if piece.kind == Kind.NORMAL]
    if not all(float(rank).is_integer() for rank in ranks):
        raise UserError(
            f"{origin}: tokenizer.ggml.scores are not the whole numbers that rank a BPE's merges: "
            "unigram models are not supported"
        )
    if len(ranks) > 1 and len(set(ranks)) == 1:
        raise UserError(
            f"{origin}: tokenizer.ggml.scores are all {ranks[0]:g}, which ranks no merges: the ids of a text cannot be "
            "known; convert the Hugging Face directory that the file was made from"
        )
    roles = {"unk": unknown[0]} | {
        ours: ids[theirs]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if theirs in ids and pieces[ids[theirs]].kind == Kind.CONTROL
    }
    model = bpe_model(pieces, roles, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    return model, [piece.text for piece in pieces]


def gguf_pieces(long_field: Callable[[str], list[Any]], origin: str) -> list[Piece]:
    """The entries of the vocabulary by id, each with a name of its own."""
    names, scores, kinds = (long_field(f"tokenizer.ggml.{field}") for field in ("tokens", "scores", "token_type"))
    if not names or not len(names) == len(scores) == len(kinds):
        raise UserError(f"{origin}: its tokenizer is not whole (tokens, scores and token types of one vocabulary)")
    try:
        pieces = [Piece(name, score, Kind(kind)) for name, score, kind in zip(names, scores, kinds)]
    except ValueError as error:
        raise UserError(f"{origin}: tokenizer.ggml.token_type: {error}") from error
    # The converter writes the spaces of added tokens as such; SentencePiece has none in a piece.
    pieces = [
        piece._replace(text=piece.text.replace(" ", SPACE)) if piece.kind == Kind.USER_DEFINED else piece
        for piece in pieces
    ]
    while pieces and pieces[-1].kind == Kind.UNUSED and FILLING.fullmatch(pieces[-1].text):
        pieces.pop()
    seen: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece.text or seen.setdefault(piece.text, number) != number:
            raise UserError(
                f"{origin}: token {number} of its tokenizer is {piece.text!r}, which is empty or twice there"
            )
    found = [piece.text for piece in pieces if piece.kind == Kind.BYTE]
    if found and (len(found) != 256 or not all(map(BYTE_PIECE.fullmatch, found))):
        raise UserError(f"{origin}: its tokenizer has {len(found)} byte tokens, not <0x00> to <0xFF>")
    return pieces

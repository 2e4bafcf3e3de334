"""Checks of the data: are the targets the next tokens, how do the tokens look, is there enough text for the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, counted, in_numbers
from tfgpt.model import presets
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.training.train_config import TrainConfig

# At most so many tokens are counted one by one (some seconds), in pieces.
COUNTED_TOKENS, PIECE = 200_000_000, 1 << 24

LITTLE_REPETITION = 4.0
"""Up to about 4 epochs, repeated text is worth almost as much as new (Muennighoff et al. 2023, arXiv:2305.16264)."""

WORTHLESS_REPETITION = 40.0
"""By about 40 epochs, repeating it further is worth nothing (the same, section 6)."""

FEW_HELD_OUT_TOKENS = 2000
UNUSED_SHARE = 0.2


def check_batch(batch: Mapping[str, np.ndarray], vocabulary_size: int, conversations: bool = False) -> CheckResult:
    """Whether a batch is what a causal language model learns from.

    Args:
        batch: `token_ids`, `targets`, `weights` and perhaps `segment_ids`, `positions`, each [B, T].
        vocabulary_size: of the decoder.
        conversations: whether a row is packed with conversations and padding, the last target of each being no input.
    """
    token_ids, targets, weights = batch["token_ids"], batch["targets"], batch["weights"]
    rows, length = token_ids.shape
    line = f"{counted(rows, 'row')} of {length} tokens; every target is the token that follows"
    numbers = {"rows": rows, "sequence_length": length, "share_learned": float((weights > 0).mean())}
    problem = (
        shift_problem(token_ids, targets, inside(batch["segment_ids"]) if conversations else None)
        or range_problem(token_ids, targets, vocabulary_size)
        or weight_problem(weights)
        or border_problem(batch)
    )
    if problem:
        advice = ("the pipeline is broken (tfgpt/pipeline/batches.py, or shards that something else wrote)",)
        return CheckResult("first batch", FAIL, problem, advice, numbers)
    if "segment_ids" in batch:
        documents = float(batch["segment_ids"].max(axis=1).mean())
        names = "conversations" if conversations else "documents"
        line += f"; attention is cut between {names}, {documents:.1f} a row"
        numbers["documents_a_row"] = documents
    if numbers["share_learned"] < 1:
        line += f"; {numbers['share_learned']:.0%} of the targets count"
    return CheckResult("first batch", OK, line, numbers=numbers)


def inside(segment_ids: np.ndarray) -> np.ndarray:
    """[B, T - 1] bool: places that are followed by a place of the same segment, padding (0) left out."""
    return (segment_ids[:, :-1] == segment_ids[:, 1:]) & (segment_ids[:, :-1] > 0)


def shift_problem(token_ids: np.ndarray, targets: np.ndarray, where: np.ndarray | None = None) -> str | None:
    """What is wrong when `targets[t]` is not `token_ids[t + 1]`; with `where` [B, T - 1], only there."""
    where = np.ones(targets[:, 1:].shape, bool) if where is None else where
    agreement = float(np.mean((targets[:, :-1] == token_ids[:, 1:])[where])) if where.any() else 1.0
    if agreement == 1.0:
        return None
    if np.array_equal(targets, token_ids):
        return "the targets are the inputs themselves, not the tokens that follow: the model would learn to copy"
    for shift in (-1, 2, 3):
        moved = targets[:, :-shift] == token_ids[:, shift:] if shift > 0 else targets[:, 1:] == token_ids[:, :-1]
        if moved.size and moved.all():
            return f"the targets are the tokens {shift} places on, not the next ones"
    return f"only {agreement:.1%} of the targets are the token that follows"


def range_problem(token_ids: np.ndarray, targets: np.ndarray, vocabulary_size: int) -> str | None:
    """What is wrong with ids outside the vocabulary."""
    lowest = int(min(token_ids.min(), targets.min()))
    highest = int(max(token_ids.max(), targets.max()))
    if lowest < 0 or highest >= vocabulary_size:
        return f"token ids go from {lowest} to {highest}, the model knows 0 to {vocabulary_size - 1}"
    return None


def weight_problem(weights: np.ndarray) -> str | None:
    """What is wrong with the loss weights."""
    if not np.isfinite(weights).all() or (weights < 0).any():
        return "some loss weights are negative or not finite"
    return None if weights.sum() > 0 else "no target counts: all loss weights are 0"


def border_problem(batch: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong when positions do not restart exactly where a document begins."""
    if "segment_ids" not in batch:
        return None
    segment_ids, positions = batch["segment_ids"], batch["positions"]
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    expected = np.where(begins, 0, positions[:, :-1] + 1)
    if not np.array_equal(positions[:, 1:], expected):
        return "the positions do not restart exactly where a document begins"
    return None


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """What counting tokens one by one gives.

    Attributes:
        counted: how many were looked at, from the beginning.
        by_id: [V] int64, how often each id occurs.
        document_lengths: [documents] tokens of each document, without end-of-text.
    """

    counted: int
    by_id: np.ndarray
    document_lengths: np.ndarray


def count_tokens(shards: TokenShards, limit: int = COUNTED_TOKENS) -> TokenCounts:
    """Counts the first `limit` tokens, reading them in pieces."""
    counted = min(shards.num_tokens, limit)
    by_id = np.zeros(shards.vocabulary_size, np.int64)
    borders = []
    for start in range(0, counted, PIECE):
        piece = np.asarray(shards.tokens[start : min(start + PIECE, counted)])
        by_id += np.bincount(piece, minlength=len(by_id))
        borders.append(np.flatnonzero(piece == shards.end_of_text_id) + start)
    lengths = np.diff(np.concatenate(borders)) - 1
    if not len(lengths):
        # A document longer than what was counted.
        lengths = np.array([counted - 1])
    return TokenCounts(counted, by_id, lengths)


def check_tokens(data: PreparedData, recipe: TrainConfig) -> CheckResult:
    """Statistics of the training tokens; warns when much of the vocabulary never occurs."""
    shards = data.train
    counts = count_tokens(shards)
    ordinary = data.tokenizer.byte_lengths() > 0
    unused = int((ordinary & (counts.by_id[: len(ordinary)] == 0)).sum())
    share = unused / max(int(ordinary.sum()), 1)
    lengths = counts.document_lengths
    bytes_per_token = shards.num_bytes / max(shards.num_tokens - 1, 1)
    numbers = {
        "tokens": shards.num_tokens,
        "validation_tokens": data.validation.num_tokens,
        "tokens_counted": counts.counted,
        "bytes_per_token": bytes_per_token,
        "vocabulary_size": data.tokenizer.vocabulary_size,
        "unused_ids": unused,
        "unused_share": share,
        "documents": shards.num_documents,
        "shortest_document": int(lengths.min()),
        "median_document": float(np.median(lengths)),
        "longest_document": int(lengths.max()),
        **biggest_source(data),
    }
    where = "" if counts.counted == shards.num_tokens else f" (of the first {in_numbers(counts.counted)})"
    line = (
        f"{shards.num_tokens:,} to train on, {data.validation.num_tokens:,} held out; {bytes_per_token:.2f} bytes a "
        f"token; {unused:,} of {int(ordinary.sum()):,} ids never occur{where}; {document_words(lengths)}"
    )
    if "biggest_source" in numbers:
        line += f"; {numbers['biggest_source_share']:.0%} of the documents are from {numbers['biggest_source']}"
    # Bytes that never occur cost nothing worth mentioning.
    if share > UNUSED_SHARE and data.tokenizer.vocabulary_size > 1024:
        used = data.tokenizer.vocabulary_size - unused
        advice = f"--vocabulary_size={max(512, -(-used // 64) * 64)}: rows that never occur are never learned"
        if recipe.tokenizer_config().tokenizer != "bpe":
            advice = "--tokenizer=bpe trains a vocabulary on this text; rows that never occur are never learned"
        return CheckResult("tokens", OK if recipe.run.init_from else WARN, line, (advice,), numbers)
    return CheckResult("tokens", OK, line, numbers=numbers)


def document_words(lengths: np.ndarray) -> str:
    """How long documents are, from their lengths in tokens."""
    if len(lengths) == 1:
        return f"one document of {lengths[0]:,} tokens"
    return (
        f"{len(lengths):,} documents of {lengths.min():,} to {lengths.max():,} tokens, median {np.median(lengths):,.0f}"
    )


def biggest_source(data: PreparedData) -> dict[str, object]:
    """The source with the most training documents and its share of them; {} with a single source."""
    sources = [source for source in data.documents.manifest["sources"] if source["of"] == "train_text"]
    total = sum(source["documents"] for source in sources)
    if len(sources) < 2 or not total:
        return {}
    biggest = max(sources, key=lambda source: source["documents"])
    return {"biggest_source": biggest["spec"], "biggest_source_share": biggest["documents"] / total}


def check_corpus(data: PreparedData, recipe: TrainConfig, vocabulary_size: int) -> CheckResult:
    """Whether there is enough text for the run that is configured."""
    tokens_a_step = recipe.batch.batch_size * recipe.batch.sequence_length
    reads = tokens_a_step * recipe.run.max_steps
    corpus = max(data.train.num_tokens - 1, 1)
    epochs = reads / corpus
    parameters = presets.count_parameters(recipe.decoder_config(vocabulary_size))
    numbers = {"tokens_read": reads, "epochs": epochs, "tokens_per_parameter": reads / parameters}
    line = (
        f"the run reads {in_numbers(reads)} tokens, {epochs:.3g} times the text, "
        f"{numbers['tokens_per_parameter']:.2g} a parameter"
    )
    advice: list[str] = []
    status = OK
    if epochs > LITTLE_REPETITION:
        status = FAIL if epochs > WORTHLESS_REPETITION else WARN
        worth = "nothing any more" if status == FAIL else "less and less"
        line += (
            f": more repetition than about {LITTLE_REPETITION:.0f} times is worth {worth}, the model learns it by heart"
            " (arXiv:2305.16264)"
        )
        steps = max(1, int(LITTLE_REPETITION * corpus / tokens_a_step))
        if steps * 20 > recipe.run.max_steps or steps >= 100:
            advice.append(f"--max_steps={steps} reads the text {steps * tokens_a_step / corpus:.1f} times")
        else:
            rows = max(1, int(LITTLE_REPETITION * corpus / (recipe.batch.sequence_length * 500)))
            advice.append(
                f"--max_steps=500 --batch_size={rows} reads the text "
                f"{500 * rows * recipe.batch.sequence_length / corpus:.1f} times"
            )
        wanted = reads / LITTLE_REPETITION * data.train.num_bytes / corpus
        advice.append(f"or give more text: about {wanted / 1e6:,.3g} MB for {recipe.run.max_steps:,} steps")
        if status == WARN and not recipe.run.early_stopping_patience:
            advice.append("or stop when it gets worse: --early_stopping_patience=3")
    held_out = data.validation.num_tokens - 1
    numbers["validation_targets"] = held_out
    if held_out < FEW_HELD_OUT_TOKENS:
        line += f"; only {held_out:,} tokens are held out, so the validation loss is noisy"
        advice.append("--validation_fraction=0.1 or --validation_text=… holds out more")
        status = WARN if status == OK else status
    return CheckResult("corpus", status, line, tuple(advice), numbers)

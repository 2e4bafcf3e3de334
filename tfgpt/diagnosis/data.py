"""Data checks: targets of the first batch, token statistics, and amount of text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfgpt.common.formatting import format_count, pluralize
from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult
from tfgpt.model import cost
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.training.train_config import TrainConfig

# At most this many tokens are counted, which takes some seconds, in chunks.
MAX_COUNTED_TOKENS, CHUNK_TOKENS = 200_000_000, 1 << 24
# Epochs up to which repeated text is almost as good as new text (Muennighoff et al. 2023, arXiv:2305.16264).
LITTLE_REPETITION = 4.0
# Epochs after which more repetition has no value (the same, section 6).
WORTHLESS_REPETITION = 40.0
FEW_VALIDATION_TOKENS = 2000
UNUSED_SHARE = 0.2


def check_batch(batch: Mapping[str, np.ndarray], vocabulary_size: int, conversations: bool = False) -> CheckResult:
    """Checks that a batch is one a causal language model can learn from.

    It has `token_ids`, `targets`, `weights` and optionally `segment_ids` and `positions`, each [B, T]. With
    `conversations` its rows are packed conversations with padding, whose last targets are not inputs.
    """
    weights = batch["weights"]
    rows, length = weights.shape
    line = f"{pluralize(rows, 'row')} of {length} tokens; every target is the token that follows"
    numbers = {"rows": rows, "sequence_length": length, "share_learned": float((weights > 0).mean())}
    problem = shift_problem(batch, conversations) or value_problem(batch, vocabulary_size)
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


def shift_problem(batch: Mapping[str, np.ndarray], conversations: bool) -> str | None:
    token_ids, targets = batch["token_ids"], batch["targets"]
    equal = targets[:, :-1] == token_ids[:, 1:]
    if conversations:
        segment_ids = batch["segment_ids"]
        equal = equal[(segment_ids[:, :-1] == segment_ids[:, 1:]) & (segment_ids[:, :-1] > 0)]
    if equal.all():
        return None
    if np.array_equal(targets, token_ids):
        return "the targets are the inputs themselves, not the tokens that follow: the model would learn to copy"
    for shift in (-1, 2, 3):
        moved = targets[:, :-shift] == token_ids[:, shift:] if shift > 0 else targets[:, 1:] == token_ids[:, :-1]
        if moved.size and moved.all():
            return f"the targets are the tokens {shift} positions later, not the next ones"
    return f"only {equal.mean():.1%} of the targets are the token that follows"


def value_problem(batch: Mapping[str, np.ndarray], vocabulary_size: int) -> str | None:
    weights, ids = batch["weights"], np.stack([batch["token_ids"], batch["targets"]])
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        return f"token ids range from {ids.min()} to {ids.max()}; the model's from 0 to {vocabulary_size - 1}"
    if not np.isfinite(weights).all() or (weights < 0).any():
        return "some loss weights are negative or not finite"
    if not weights.sum() > 0:
        return "no target counts: all loss weights are 0"
    if "segment_ids" in batch:
        segment_ids, positions = batch["segment_ids"], batch["positions"]
        begins = segment_ids[:, 1:] != segment_ids[:, :-1]
        if not np.array_equal(positions[:, 1:], np.where(begins, 0, positions[:, :-1] + 1)):
            return "the positions do not restart exactly where a document begins"
    return None


def count_tokens(shards: TokenShards, limit: int = MAX_COUNTED_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Counts the first `limit` tokens, one chunk at a time.

    Returns [V] int64, occurrences of each id, and [documents] tokens in each document, without end-of-text.
    """
    counted = min(shards.num_tokens, limit)
    by_id = np.zeros(shards.vocabulary_size, np.int64)
    ends = []
    for start in range(0, counted, CHUNK_TOKENS):
        chunk = np.asarray(shards.tokens[start : min(start + CHUNK_TOKENS, counted)])
        by_id += np.bincount(chunk, minlength=len(by_id))
        ends.append(np.flatnonzero(chunk == shards.end_of_text_id) + start)
    lengths = np.diff(np.concatenate(ends)) - 1
    # Without two ends, one document is longer than the limit.
    return by_id, lengths if len(lengths) else np.array([counted - 1])


def check_tokens(data: PreparedData, config: TrainConfig) -> CheckResult:
    shards, vocabulary_size = data.train, data.tokenizer.vocabulary_size
    by_id, lengths = count_tokens(shards)
    counted, ordinary = int(by_id.sum()), data.tokenizer.byte_lengths() > 0
    unused = int((ordinary & (by_id[: len(ordinary)] == 0)).sum())
    share = unused / max(int(ordinary.sum()), 1)
    bytes_per_token = shards.num_bytes / max(shards.num_tokens - 1, 1)
    numbers: dict[str, object] = {
        "tokens": shards.num_tokens,
        "validation_tokens": data.validation.num_tokens,
        "tokens_counted": counted,
        "bytes_per_token": bytes_per_token,
        "vocabulary_size": vocabulary_size,
        "unused_ids": unused,
        "unused_share": share,
        "documents": shards.num_documents,
        "shortest_document": int(lengths.min()),
        "median_document": float(np.median(lengths)),
        "longest_document": int(lengths.max()),
    }
    where = "" if counted == shards.num_tokens else f" (of the first {format_count(counted)})"
    line = (
        f"{shards.num_tokens:,} to train on, {data.validation.num_tokens:,} held out; {bytes_per_token:.2f} bytes a "
        f"token; {unused:,} of {int(ordinary.sum()):,} ids never occur{where}; "
    )
    if len(lengths) == 1:
        line += f"one document of {lengths[0]:,} tokens"
    else:
        line += f"{len(lengths):,} documents of {lengths.min():,} to {lengths.max():,} tokens, "
        line += f"median {np.median(lengths):,.0f}"
    sources = [source for source in data.documents.manifest["sources"] if source["of"] == "train_text"]
    documents = sum(source["documents"] for source in sources)
    if len(sources) > 1 and documents:
        biggest = max(sources, key=lambda source: source["documents"])
        numbers["biggest_source"] = biggest["spec"]
        numbers["biggest_source_share"] = biggest["documents"] / documents
        line += f"; {biggest['documents'] / documents:.0%} of the documents are from {biggest['spec']}"
    # Unused byte tokens cost almost nothing.
    if share <= UNUSED_SHARE or vocabulary_size <= 1024:
        return CheckResult("tokens", OK, line, numbers=numbers)
    advice = f"--vocabulary_size={max(512, -(-(vocabulary_size - unused) // 64) * 64)}"
    if config.tokenizer_config().tokenizer != "bpe":
        advice = "--tokenizer=bpe trains a vocabulary on this text"
    advice += ": the embeddings of unused ids are never trained"
    return CheckResult("tokens", OK if config.run.init_from else WARN, line, (advice,), numbers)


def check_corpus(data: PreparedData, config: TrainConfig, vocabulary_size: int) -> CheckResult:
    length, max_steps = config.batch.sequence_length, config.run.max_steps
    tokens_per_step = config.batch.batch_size * length
    tokens_read = tokens_per_step * max_steps
    corpus = max(data.train.num_tokens - 1, 1)
    validation_targets = data.validation.num_tokens - 1
    epochs = tokens_read / corpus
    per_parameter = tokens_read / cost.count_parameters(config.decoder_config(vocabulary_size))
    line = f"the run reads {format_count(tokens_read)} tokens, {epochs:.3g} times the text, "
    line += f"{per_parameter:.2g} a parameter"
    advice: list[str] = []
    status = OK
    if epochs > LITTLE_REPETITION:
        status = FAIL if epochs > WORTHLESS_REPETITION else WARN
        worth = "nothing any more" if status == FAIL else "less and less"
        line += f": more repetition than about {LITTLE_REPETITION:.0f} times is worth {worth}, the model memorizes the "
        line += "text (arXiv:2305.16264)"
        steps = max(1, int(LITTLE_REPETITION * corpus / tokens_per_step))
        flags = f"--max_steps={steps}"
        if steps * 20 <= max_steps and steps < 100:
            steps, rows = 500, max(1, int(LITTLE_REPETITION * corpus / (length * 500)))
            flags, tokens_per_step = f"--max_steps=500 --batch_size={rows}", rows * length
        advice.append(f"{flags} reads the text {steps * tokens_per_step / corpus:.1f} times")
        wanted = tokens_read / LITTLE_REPETITION * data.train.num_bytes / corpus
        advice.append(f"or give more text: about {wanted / 1e6:,.3g} MB for {max_steps:,} steps")
        if status == WARN and not config.run.early_stopping_patience:
            advice.append("or stop when it gets worse: --early_stopping_patience=3")
    if validation_targets < FEW_VALIDATION_TOKENS:
        line += f"; only {validation_targets:,} tokens are held out, so the validation loss is noisy"
        advice.append("--validation_fraction=0.1 or --validation_text=… holds out more")
        status = WARN if status == OK else status
    numbers = {"tokens_read": tokens_read, "epochs": epochs}
    numbers |= {"tokens_per_parameter": per_parameter, "validation_targets": validation_targets}
    return CheckResult("corpus", status, line, tuple(advice), numbers)

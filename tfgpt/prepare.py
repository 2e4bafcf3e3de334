"""Prepares text for training on its own: documents, a tokenizer, token shards; `train` does the same when it must.

Everything is kept in the cache by the hash of what it is made from, so that a second run, and `train` with the same
flags, find it there.
"""

from __future__ import annotations

import shlex
import sys

from tfgpt.common.command import Command, flag_items
from tfgpt.common.settings import Settings
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.config import PrepareConfig
from tfgpt.tokenization.config import TokenizerConfig


def run(corpus: CorpusConfig, tokenizer: TokenizerConfig, prepare: PrepareConfig) -> None:
    """Prepares and says what came of it."""
    from tfgpt.pipeline.prepare import prepare as prepare_data
    from tfgpt.pipeline.prepare import put_results
    from tfgpt.pipeline.report import report_of

    data = prepare_data(corpus, tokenizer)
    print("\n".join(["", *report_of(data), ""]))
    if prepare.output_dir:
        print(f"Results: {put_results(data, prepare.output_dir)}")
    print(f"Data card: {data.documents.card}")
    print(f"Next: python -m tfgpt.train {flags_of(corpus, tokenizer)}")


def flags_of(*settings: Settings) -> str:
    """The flags that are not at their defaults, as one types them."""
    return " ".join(
        shlex.quote(f"--{name}={item}")
        for group in settings
        for name, value in group.to_dict().items()
        if value != type(group)().to_dict()[name]
        for item in flag_items(value)
    )


COMMAND = Command("prepare", __doc__, (CorpusConfig, TokenizerConfig, PrepareConfig), run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

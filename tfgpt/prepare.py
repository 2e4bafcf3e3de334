"""Prepares text for training: documents, a tokenizer and token shards; `train` does so itself where they are missing.

With --objective=chat it prepares conversations instead of token shards (long ones are cut to the rows of
--sequence_length), and --preview=2 shows two rows as the model sees them.

Everything is kept in the cache by the hash of its sources and settings, so that a second run, and `train` with the same
flags, reuse it.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command, shell_command
from tfgpt.common.errors import SettingError
from tfgpt.common.flags import flag_strings
from tfgpt.common.output_directories import check_replaceable
from tfgpt.common.settings import Settings
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.config import AugmentationConfig, BatchConfig, MixtureConfig, PrepareConfig
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.training.objective_config import ObjectiveConfig
from tfgpt.training.train_config import TrainConfig


def run(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    objective: ObjectiveConfig,
    batch: BatchConfig,
    mixture: MixtureConfig,
    augmentation: AugmentationConfig,
    prepare: PrepareConfig,
) -> None:
    """Prepares the data and prints a report."""
    if objective.objective not in ("pretrain", "chat"):
        raise SettingError("objective", "pretrain and chat can be prepared; train prepares data of other objectives")
    if objective.objective == "chat":
        if prepare.output_dir:
            raise SettingError("output_dir", "takes token shards only; conversations stay in the cache")
        groups: dict[str, Any] = {"corpus": corpus, "tokenizer": tokenizer, "objective": objective, "batch": batch}
        groups |= {"mixture": mixture, "augmentation": augmentation}
        config = TrainConfig(**groups)
        import_tensorflow()
        from tfgpt.diagnosis.preview import preview_chat_data

        for line in preview_chat_data(config, prepare.preview, dim=sys.stdout.isatty()):
            print(line)
        print(f"Next: {shell_command('train', *flags_of(*groups.values()), '--init_from=MODEL')}")
        return
    if prepare.preview:
        raise SettingError("preview", "shows conversations, with --objective=chat; tfgpt.doctor shows rows of text")
    from tfgpt.pipeline.prepare import export_results, tokenizer_report
    from tfgpt.pipeline.prepare import prepare as prepare_data

    if prepare.output_dir:
        check_replaceable(prepare.output_dir, "prepared data", "output_dir", prepare.overwrite)
    data = prepare_data(corpus, tokenizer)
    print("\n".join(["", *tokenizer_report(data), ""]))
    if prepare.output_dir:
        print(f"Results: {export_results(data, prepare.output_dir, prepare.overwrite)}")
    print(f"Data card: {data.documents.card}")
    print(f"Next: {shell_command('train', *flags_of(corpus, tokenizer))}")


def flags_of(*settings: Settings) -> list[str]:
    """Returns the flags with other values than their defaults."""
    return [
        f"--{name}={item}"
        for group in settings
        for name, value in group.to_dict().items()
        if value != type(group)().to_dict()[name]
        for item in flag_strings(value)
    ]


GROUPS = (
    CorpusConfig,
    TokenizerConfig,
    ObjectiveConfig,
    BatchConfig,
    MixtureConfig,
    AugmentationConfig,
    PrepareConfig,
)
COMMAND = Command("prepare", __doc__, GROUPS, run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

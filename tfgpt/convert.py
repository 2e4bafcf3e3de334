"""Converts a pretrained model of another program to a model directory for all other commands.

The shortest form is `python -m tfgpt.convert --source=HuggingFaceTB/SmolLM2-135M-Instruct --output=models/smollm2`.
An unsupported model is refused before its weights are read. Weights are converted one by one, so the model is never in
memory twice. `transformers` opens the result. To rank pretrained models for a task, run
`python -m tfgpt.convert --suggest --task=chat --data_size=20MB --memory=16GiB`.
"""

from __future__ import annotations

import sys

from tfgpt.common.command_line import Command, shell_command
from tfgpt.conversion.config import ConvertConfig
from tfgpt.diagnosis.config import SuggestConfig


def run(convert: ConvertConfig, suggest: SuggestConfig) -> None:
    """Converts a model, or ranks models; only KerasHub presets need TensorFlow."""
    if convert.suggest:
        from tfgpt.diagnosis.suggest import suggest_models

        print("\n".join(suggest_models(suggest)))
        return
    from tfgpt.conversion.convert import convert as write

    output = write(convert, lambda line: print(line, flush=True))
    command = shell_command("generate", f"--model={output}", "--prompt=The capital of France is")
    print(f"Next:    {command}")


COMMAND = Command("convert", __doc__, [ConvertConfig, SuggestConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

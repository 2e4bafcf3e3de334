"""Says before a long run whether it can work: data, model, memory, speed, time. Takes the flags of train.

The shortest form is `python -m tfgpt.doctor --train_text='my/*.txt'`. Shows some rows of the first batch, then one
line a check, beginning with ok, warn or FAIL, with what to change below it. Writes nothing into the run directory. Exit
code: 0 when the run can work, 1 when a check fails, 2 when flags or text are wrong. With --objective=chat its
conversations are examined; with dpo, ipo, orpo, simpo and grpo only memory and disk are.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.training.train_config import GROUPS, TrainConfig, relocate_run_dir


def run(doctor: DoctorConfig, **settings: Any) -> int:
    """Checks the settings together, then examines the run they describe."""
    recipe = TrainConfig(**settings)
    import_tensorflow()
    from tfgpt.diagnosis.run_checks import run_checks

    report = run_checks(recipe, doctor, say)
    say("")
    say(report.summary())
    if doctor.json:
        say(report.json())
    return report.exit_code


def say(text: str) -> None:
    """A line on standard output, whatever its encoding can express."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


COMMAND = Command("doctor", __doc__, (*GROUPS, DoctorConfig), run, relocate_run_dir)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

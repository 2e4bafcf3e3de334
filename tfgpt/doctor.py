"""Checks before a long run whether it can work: data, model, memory, speed and time. Takes the flags of train.

The shortest form is `python -m tfgpt.doctor --train_text='my/*.txt'`. It shows some rows of the first batch, then one
line per check that begins with ok, warn or FAIL, with advice below it. It writes nothing into the run directory. The
exit code is 0 if the run can work, 1 if a check fails and 2 if flags or text are wrong. With --objective=dpo, ipo,
orpo, simpo and grpo, only memory and disk are checked.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.training.train_config import GROUPS, TrainConfig, relocate_run_dir


def run(doctor: DoctorConfig, **settings: Any) -> int:
    """Runs the checks and prints the report."""
    config = TrainConfig(**settings)
    import_tensorflow()
    from tfgpt.diagnosis.run_checks import run_checks

    report = run_checks(config, doctor, log)
    log("")
    log(report.summary())
    if doctor.json:
        log(report.json())
    return report.exit_code


def log(text: str) -> None:
    """Prints a line; characters that the encoding of standard output lacks are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


COMMAND = Command("doctor", __doc__, (*GROUPS, DoctorConfig), run, relocate_run_dir)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())

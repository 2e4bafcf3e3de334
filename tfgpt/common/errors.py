"""Errors that a command prints as one line (see `tfgpt.common.command_line`).

A message is one line. It names the flag, the file or the line at fault and says what to do. A docstring's `Raises:`
states the cause only.
"""


class TfgptError(Exception):
    """Base class; `exit_code` is the exit code of the process."""

    exit_code = 1


class UserError(TfgptError):
    """The input or the flags are wrong."""

    exit_code = 2


class RunError(TfgptError):
    """The run failed: disk full, damaged checkpoint, diverged training."""


class DivergedError(RunError):
    """Training diverged: its updates or losses are not finite, and returning to a checkpoint did not help."""


class SettingError(UserError):
    """A field of a settings class has a wrong value.

    Args:
        name: the field, which is also the flag without its dashes.
        problem: the error and its remedy; the message is `--name: problem`.
    """

    def __init__(self, name: str, problem: str):
        super().__init__(f"--{name}: {problem}")
        self.name = name
        self.problem = problem

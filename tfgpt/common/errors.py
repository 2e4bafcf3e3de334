"""The two ways a command ends badly, each printed as one line by `tfgpt.common.command_line`."""


class TfgptError(Exception):
    """An error whose message is one line for the person at the keyboard; `exit_code` is the process's."""

    exit_code = 1


class UserError(TfgptError):
    """The input or the flags are at fault: the message names the file, line or flag and what to do (exit 2)."""

    exit_code = 2


class RunError(TfgptError):
    """The run itself failed: disk full, damaged checkpoint, diverged training (exit 1)."""

    exit_code = 1


class DivergedError(RunError):
    """The training diverged: its updates or losses are not finite, and going back did not help."""


class SettingError(UserError):
    """One field of a settings class is wrong; the flag of the same name is named in the printed line.

    Args:
        name: the field, which is also the flag without its dashes.
        problem: what is wrong with it and what to do.
    """

    def __init__(self, name: str, problem: str):
        super().__init__(f"--{name}: {problem}")
        self.name = name
        self.problem = problem

"""Who does what in a search, and its beginning and end.

    this process: KerasTuner's oracle, which proposes values, and a thread for each worker
        ├── trials of tuner0     a process that trains one trial after the other (`tfgpt.search.trial_process`)
        └── trials of tuner1     with --parallel=2

On a cluster this process is the one that KERASTUNER_TUNER_ID names: the chief has the oracle, and each of the others is
a worker with a process for its trials.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

from tfgpt.common.command_line import SigtermReceived
from tfgpt.common.errors import UserError
from tfgpt.common.locks import writer_lock
from tfgpt.common.output_directories import LOCK
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.search.study import Study
from tfgpt.search.trial_process import TrialProcess
from tfgpt.tokenization.tokenizer import available_cpus
from tfgpt.training.stop_signals import leave_terminal, stop_signals

KERASTUNER_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def launch(plan: Study) -> int:
    """Runs the search, or this machine's part of it.

    Returns:
        The exit code: 0 when the search is finished.

    Raises:
        KeyboardInterrupt: a signal stopped the search, resumably.
        UserError: another process writes the search, text or flags are at fault, or KerasTuner's environment variables.
        RunError: the search cannot go on.
    """
    check_cluster(plan)
    if not has_the_results():
        return run(plan)
    with writer_lock(plan.directory / LOCK, plan.directory, "search_dir"):
        return run(plan)


def run(plan: Study) -> int:
    """`launch`, once nobody else writes the search."""
    stopping = threading.Event()
    received: list[int] = []
    parallel = plan.search.parallel
    team = [TrialProcess(plan, devices(number, parallel)) for number in range(parallel)]

    def stop(number: int, frame: FrameType | None) -> None:
        if signal.Signals(number).name == "SIGHUP":
            leave_terminal()
        received.append(number)
        stopping.set()

    before = {number: signal.signal(number, stop) for number in stop_signals()}

    def tick() -> None:
        if stopping.is_set():
            team[0].stop()

    try:
        # All import TensorFlow at the same time.
        for process in team:
            process.start()
        import_tensorflow()
        from tfgpt.search.tuner import play

        team[0].prepare(tick)
        code = 0 if stopping.is_set() else play(plan, team, stopping)
    finally:
        for process in team:
            process.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and not code:
        raise SigtermReceived if received[0] == signal.SIGTERM else KeyboardInterrupt
    return code


def check_cluster(plan: Study) -> None:
    """Looks at KerasTuner's environment variables.

    Raises:
        UserError: they are incomplete, or contradict --parallel.
    """
    given = [name for name in KERASTUNER_VARIABLES if os.environ.get(name)]
    missing = [name for name in KERASTUNER_VARIABLES if name not in given]
    if given and missing:
        needed = ", ".join(KERASTUNER_VARIABLES)
        raise UserError(f"{given[0]} is set, but {missing[0]} is not; a cluster needs {needed}")
    if given and plan.search.parallel > 1:
        raise UserError("--parallel: is for one machine; on a cluster start one tune for each KERASTUNER_TUNER_ID")


def has_the_results() -> bool:
    """Whether the search's end is to be seen to here: on a cluster that is the chief's."""
    return "chief" in os.environ.get("KERASTUNER_TUNER_ID", "chief")


def devices(number: int, workers: int, gpus: list[str] | None = None, cores: int | None = None) -> dict[str, str]:
    """The environment that gives the trials of one of several workers their share of the machine.

    Args:
        number: which worker, from 0.
        workers: how many there are.
        gpus: the GPUs of the machine; None: those of CUDA_VISIBLE_DEVICES, or all that the driver knows.
        cores: processor cores; None: those this process may use.
    """
    if workers == 1:
        return {}
    cores = available_cpus() if cores is None else cores
    share = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // workers))}
    gpus = known_gpus() if gpus is None else gpus
    if len(gpus) >= workers:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number::workers])
    elif gpus:
        # Several trials on one GPU: each takes what memory it needs, instead of all there is.
        share["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        share["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return share


def known_gpus() -> list[str]:
    """The GPUs that TensorFlow would see, by number, without asking it (on Windows and macOS it sees none)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    driver = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(driver.iterdir())))] if driver.is_dir() else []

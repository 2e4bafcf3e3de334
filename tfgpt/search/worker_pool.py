"""The search: workers train the trials that KerasTuner's oracle proposes.

    this process: the oracle, and a loop over the workers
        ├── tuner0     a process that trains one trial after the other (`tfgpt.search.trial_process`)
        └── tuner1     with --parallel=2

On a cluster, KERASTUNER_TUNER_ID names the role of this process: the chief has the oracle, each other process is a
worker.
"""

from __future__ import annotations

import contextlib
import os
import time
from multiprocessing import connection as connections
from typing import Any

from tfgpt.common.atomic_files import write_json
from tfgpt.common.command_line import SigtermReceived, shell_command
from tfgpt.common.errors import RunError, UserError
from tfgpt.common.locks import writer_lock
from tfgpt.common.output_directories import LOCK
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.search.study import Study
from tfgpt.search.trial_process import PREPARE, TrialProcess, known_gpus
from tfgpt.search.trials import format_value
from tfgpt.tokenization.tokenizer import available_cpus
from tfgpt.training.stop_signals import StopSignals

KERASTUNER_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.5
TUNER_STATUSES = {"completed": "COMPLETED", "stopped": "COMPLETED", "failed": "FAILED", "killed": "INVALID"}


def run_search(study: Study) -> None:
    """Runs a search, or the part of this process in a cluster; KeyboardInterrupt if a signal stopped it."""
    given = [name for name in KERASTUNER_VARIABLES if os.environ.get(name)]
    missing = [name for name in KERASTUNER_VARIABLES if name not in given]
    if given and missing:
        needed = ", ".join(KERASTUNER_VARIABLES)
        raise UserError(f"{given[0]} is set, but {missing[0]} is not; a cluster needs {needed}")
    if given and study.search.parallel > 1:
        raise UserError("--parallel: is for one machine; on a cluster start one tune for each KERASTUNER_TUNER_ID")
    if not has_the_results():
        return run_with_signals(study)
    with writer_lock(study.directory / LOCK, study.directory, "search_dir"):
        return run_with_signals(study)


def has_the_results() -> bool:
    """Returns whether this process writes the table of the search: on a cluster only the chief does."""
    return "chief" in os.environ.get("KERASTUNER_TUNER_ID", "chief")


def run_with_signals(study: Study) -> None:
    processes = [TrialProcess(study, device_share(number, study.search.parallel))
                 for number in range(study.search.parallel)]  # fmt: skip
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        for process in processes:
            stack.callback(process.close)
            process.start()
        import_tensorflow()  # at the same time as the processes
        # Prepares the data: an error in it is not one of a trial.
        processes[0].submit(PREPARE)
        while (message := processes[0].receive(POLL_SECONDS)) is None:
            if signals.requested:
                processes[0].stop()
        if message[1]["status"] in ("failed", "killed"):
            raise RunError(f"the process that prepares the data {message[1]['error']}")
        if not signals.requested:
            run_role(study, processes, signals)
    if signals.requested:
        raise SigtermReceived if signals.requested == "SIGTERM" else KeyboardInterrupt


def run_role(study: Study, processes: list[TrialProcess], signals: StopSignals) -> None:
    from tfgpt.search import cluster
    from tfgpt.search.oracle import make_oracle

    name = os.environ.get("KERASTUNER_TUNER_ID")
    if name and not has_the_results():
        client = cluster.connect_to_chief(name, signals)
        run_workers([Worker(study, client, processes[0], name)], signals)
        return
    oracle = make_oracle(study, cluster=bool(name))
    if name:
        cluster.serve(oracle, signals)
    else:
        workers = [Worker(study, oracle, process, f"tuner{number}") for number, process in enumerate(processes)]
        run_workers(workers, signals)
    if signals.requested or not oracle.exhausted:
        return
    table = oracle.table()
    ranked = table.ranked()
    failed = [trial for trial in table.trials if trial.status == "failed"]
    if not ranked:
        reason = f": {failed[0].error}" if failed else ""
        raise RunError(f"none of {len(table.trials)} trials succeeded{reason}")
    best = ranked[0]
    print(f"Best of {len(table.trials)} trials ({len(failed)} failed): trial {best.trial_id}, {table.objective} "
          f"{format_value(table.objective, best.objective)}")  # fmt: skip
    print(f"  {best.describe()}")
    print(f"Table: {study.directory / 'trials.csv'}")
    print("Train with it: " + shell_command("train", f"--flagfile={study.directory / 'best.cfg'}"), flush=True)


class Worker:
    """Trains the trials that an oracle (or a client of the chief's) proposes; `name` is KerasTuner's tuner id."""

    def __init__(self, study: Study, oracle: Any, process: TrialProcess, name: str):
        self.study, self.oracle, self.process, self.name = study, oracle, process, name
        self.trial: Any = None
        self.finished = False
        self.last_heartbeat = 0.0

    def start_trial(self) -> None:
        trial = self.oracle.create_trial(self.name)
        if trial.status == "STOPPED":
            self.finished = True
        elif trial.status == "RUNNING":
            self.trial = trial
            result = self.study.result(trial.trial_id)
            if result.get("status") in ("completed", "stopped", "failed"):  # It ended before the search was killed.
                self.end_trial(result)
            else:
                self.process.submit(self.study.trial_spec(trial.trial_id, trial.hyperparameters.values))

    def poll(self) -> None:
        message = self.process.receive()
        if message is None:
            if time.monotonic() - self.last_heartbeat >= HEARTBEAT_SECONDS:
                self.last_heartbeat = time.monotonic()
                self.oracle.get_trial(self.trial.trial_id)
        elif message[0] == "report":
            answer = self.oracle.update_trial(self.trial.trial_id, message[2], step=message[1])
            self.process.send(answer.status == "STOPPED")
        else:
            self.end_trial(message[1])

    def end_trial(self, result: dict[str, Any]) -> None:
        trial, self.trial = self.trial, None
        if result["status"] == "interrupted":
            self.finished = True
            return
        if result["status"] in ("killed", "failed"):  # The process may have died.
            write_json(self.study.trial_dir(trial.trial_id) / "result.json", result)
        trial.status = TUNER_STATUSES[result["status"]]
        self.oracle.end_trial(trial)


def run_workers(workers: list[Worker], signals: StopSignals) -> None:
    while True:
        for worker in workers:
            if worker.trial is None and not worker.finished and not signals.requested:
                worker.start_trial()
        training = [worker for worker in workers if worker.trial is not None]
        if not training and (signals.requested or all(worker.finished for worker in workers)):
            return
        if not connections.wait([worker.process.connection for worker in training], POLL_SECONDS) and not training:
            time.sleep(POLL_SECONDS)
        for worker in training:
            if signals.requested:
                worker.process.stop()
            worker.poll()


def device_share(number: int, workers: int, gpus: list[str] | None = None, cores: int | None = None) -> dict[str, str]:
    if workers == 1:
        return {}
    cores = available_cpus() if cores is None else cores
    share = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // workers))}
    gpus = known_gpus() if gpus is None else gpus
    if len(gpus) >= workers:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number::workers])
    elif gpus:
        # Several trials share a GPU: each allocates the memory that it needs, instead of all.
        share["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        share["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return share

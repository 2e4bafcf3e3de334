"""The launcher of a search: it imports TensorFlow once, and everybody else is a fork of it.

    launcher ── worker "tuner0" (KerasTuner's tuner; asks for values)
        │  └─── its trial (trains)
        ├────── worker "tuner1" and its trial          with --parallel=2
        └────── "chief" (KerasTuner's oracle as a server)

The launcher starts no TensorFlow runtime and no gRPC itself, only imports them: so a fork is safe and takes
milliseconds, where a new process would import for eight seconds. A worker asks it for a process for each trial; it
starts a killed worker or chief again, which finds its trial as it left it. On a cluster each machine has a launcher for
the role that KERASTUNER_TUNER_ID names. Linux (fork) only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import connection as connections
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tfgpt.common.errors import RunError, TfgptError, UserError
from tfgpt.common.quiet import hide_notices
from tfgpt.search.plan import Plan, TrialRequest, first_values
from tfgpt.training.restarts import die_with_parent

KERASTUNER_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
LAUNCHER_GONE = "the launcher of the search is gone; the same command goes on"
LONGEST_SAVE = 120.0  # seconds
MOST_DEATHS = 20  # of one worker or chief, before the search gives up


@dataclasses.dataclass
class Role:
    """A worker or the chief.

    Attributes:
        name: KerasTuner's tuner id.
        environment: what its process has in its environment.
        devices: what its trials have in theirs.
        process, control: of its newest life.
        trial: the process that trains for it.
        deaths: times it was killed.
        ended: whether it has done its work.
    """

    name: str
    environment: dict[str, str]
    devices: dict[str, str]
    process: Any = None
    control: Connection | None = None
    trial: Any = None
    deaths: int = 0
    ended: bool = False


def import_everything() -> None:
    """Imports what the forks need, without starting TensorFlow's runtime."""
    hide_notices()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot
    import tensorboard.plugins.hparams.api  # noqa: F401

    import tfgpt.search.trial
    import tfgpt.search.tuner  # noqa: F401


def launch(plan: Plan) -> int:
    """Runs the search, or this machine's part of it.

    Returns:
        The exit code: 0 when the search is finished.

    Raises:
        KeyboardInterrupt: a signal stopped the search, resumably.
        UserError: KerasTuner's environment variables are at fault.
    """
    import_everything()
    return Launcher(plan, roles_of(plan)).run()


def roles_of(plan: Plan) -> list[Role]:
    """Who runs on this machine.

    Raises:
        UserError: KerasTuner's environment variables are incomplete, or contradict --parallel.
    """
    given = [name for name in KERASTUNER_VARIABLES if os.environ.get(name)]
    parallel = plan.search.parallel
    if given:
        missing = [name for name in KERASTUNER_VARIABLES if name not in given]
        if missing:
            raise UserError(
                f"{given[0]} is set, but {missing[0]} is not; a cluster needs {', '.join(KERASTUNER_VARIABLES)}"
            )
        if parallel > 1:
            raise UserError("--parallel: is for one machine; on a cluster start one tune for each KERASTUNER_TUNER_ID")
        return [Role(os.environ["KERASTUNER_TUNER_ID"], {}, devices(0, 1))]
    if parallel == 1:
        return [Role("tuner0", {}, devices(0, 1))]
    cluster = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    names = ["chief", *(f"tuner{number}" for number in range(parallel))]
    return [
        Role(name, {**cluster, "KERASTUNER_TUNER_ID": name}, devices(max(number - 1, 0), parallel))
        for number, name in enumerate(names)
    ]


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
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
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
    """The GPUs that TensorFlow would see, by number, without asking it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    driver = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(driver.iterdir())))] if driver.is_dir() else []


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Launcher:
    """Starts the roles, gives them processes for their trials, and ends when they have.

    Args:
        plan: the search.
        roles: who runs here.
    """

    def __init__(self, plan: Plan, roles: list[Role]):
        self.plan, self.roles = plan, roles
        self.context = multiprocessing.get_context("fork")
        self.stopping = False
        self.stop_by: float | None = None
        self.worst = 0

    def run(self) -> int:
        """Until every role has ended; the exit code of the first that failed. Raises KeyboardInterrupt when stopped."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.prepare_data()
            for role in [] if self.stopping or self.worst else self.roles:
                self.start(role)
            while any(role.process is not None and not role.ended for role in self.roles):
                self.attend()
                if self.stop_by is not None and time.monotonic() > self.stop_by:
                    break
        finally:
            for role in self.roles:
                self.end_trial(role)
                if role.process is not None and role.process.is_alive():
                    role.process.kill()
                    role.process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopping and not self.worst:
            raise KeyboardInterrupt
        return self.worst

    def prepare_data(self) -> None:
        """Reads the text before the first trial does: what is wrong with it is wrong for all of them."""
        process = self.context.Process(target=in_preparation, args=(self.plan,))
        process.start()
        while process.is_alive():
            process.join(0.5)
            if self.stopping:
                process.terminate()
        self.worst = max(process.exitcode or 0, 0) if not self.stopping else 0

    def start(self, role: Role) -> None:
        """Begins a life of a role."""
        mine, theirs = self.context.Pipe()
        role.process = self.context.Process(
            target=in_role, args=(self.plan, role.name, role.environment, theirs), name=role.name
        )
        role.process.start()
        theirs.close()
        role.control = mine

    def attend(self) -> None:
        """Waits for the next thing that happens and sees to it."""
        waiting: dict[Any, Callable[[], None]] = {}
        for role in self.roles:
            if role.ended:
                continue
            waiting[role.process.sentinel] = functools.partial(self.role_ended, role)
            if role.trial is not None:
                waiting[role.trial.sentinel] = functools.partial(self.trial_ended, role)
            elif role.control is not None:
                waiting[role.control] = functools.partial(self.asked, role)
        ready = connections.wait(list(waiting), timeout=1.0)
        if ready:
            # One at a time: what it changes may be what the next one is about.
            waiting[ready[0]]()

    def asked(self, role: Role) -> None:
        """A worker wants a trial's process."""
        assert role.control is not None
        try:
            request: TrialRequest = role.control.recv()
            to_worker = Connection(reduction.recv_handle(role.control))
        except (EOFError, OSError):
            # It is dying: its sentinel will say so.
            role.control = None
            return
        role.trial = self.context.Process(
            target=in_trial, args=(self.plan, request, to_worker, role.devices), name=f"trial {request.trial_id}"
        )
        role.trial.start()
        to_worker.close()
        with contextlib.suppress(OSError):
            role.control.send(("pid", role.trial.pid))

    def trial_ended(self, role: Role) -> None:
        """A trial's process is over, whether well or not: its worker is told."""
        role.trial.join()
        code, role.trial = role.trial.exitcode, None
        if role.control is not None:
            with contextlib.suppress(OSError):
                role.control.send(("exit", code))

    def role_ended(self, role: Role) -> None:
        """A role has ended; one that was killed is started again, and nothing is lost."""
        role.process.join()
        code = role.process.exitcode
        self.end_trial(role)
        if role.control is not None:
            role.control.close()
            role.control = None
        if code < 0 and not self.stopping and role.deaths < MOST_DEATHS:
            role.deaths += 1
            print(f"{role.name} was killed by {signal.Signals(-code).name}; starting it again", flush=True)
            self.start(role)
            return
        role.ended = True
        if code:
            self.worst = self.worst or (code if code > 0 else 128 - code)
            self.stop_all()

    def end_trial(self, role: Role) -> None:
        """Stops the trial of a role that is gone: it saves and ends; one that does not is killed."""
        if role.trial is None:
            return
        role.trial.terminate()
        role.trial.join(60)
        if role.trial.is_alive():
            role.trial.kill()
            role.trial.join()
        role.trial = None

    def stop(self, *_: Any) -> None:
        """The signal handler. From a terminal all processes get Ctrl-C themselves."""
        self.stopping = True
        self.stop_all()

    def stop_all(self) -> None:
        """Asks everybody to save and stop; who has not within LONGEST_SAVE is killed."""
        self.stop_by = self.stop_by or time.monotonic() + LONGEST_SAVE
        for role in self.roles:
            for process in (role.trial, role.process):
                if process is not None and process.is_alive():
                    with contextlib.suppress(OSError):
                        process.terminate()


def in_role(plan: Plan, name: str, environment: dict[str, str], control: Connection) -> None:
    """The life of a worker or chief."""
    begin_life()
    os.environ.update(environment)
    from tfgpt.search.tuner import play

    sys.exit(play(plan, name, control))


def in_preparation(plan: Plan) -> None:
    """The life of the process that prepares the data of the first values; the trials find them in the cache."""
    begin_life()
    try:
        recipe = plan.recipe(plan.space.flags(first_values(plan.space)), "0000")
        recipe.objective.kind().prepare(recipe)
    except TfgptError as error:
        print(f"tfgpt.tune: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(0)


def in_trial(plan: Plan, request: TrialRequest, connection: Connection, devices: dict[str, str]) -> None:
    """The life of a trial."""
    begin_life()
    from tfgpt.search.trial import run_trial

    run_trial(plan, request, connection, devices)


def begin_life() -> None:
    """What every fork does first: signals as they were, and an end when the launcher ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launcher = os.getppid()
    if sys.platform == "linux":
        die_with_parent()
    if os.getppid() != launcher:
        sys.exit(1)


class TrialProcess:
    """A worker's side of a trial's process.

    Args:
        control: to the launcher.
        memory_limit: bytes after which the trial is out of memory; 0: no limit.
    """

    def __init__(self, control: Connection, memory_limit: int):
        self.control, self.memory_limit = control, memory_limit
        self.launcher = os.getppid()
        self.pid: int | None = None

    def run(
        self,
        request: TrialRequest,
        report: Callable[[int, dict[str, float]], str],
        tick: Callable[[], None],
    ) -> dict[str, Any]:
        """Trains and waits.

        Args:
            request: what to train.
            report: called with place and numbers at each validation; answers "go on" or "stop".
            tick: called about twice a second.

        Returns:
            The trial's result; its "status" is "completed", "stopped", "failed" (with "error"), "killed" (with
            "error": by a signal, and it may go well another time) or "interrupted".

        Raises:
            RunError: something that is not the trial's fault, such as a full disk.
        """
        mine, theirs = connections.Pipe()
        self.control.send(request)
        reduction.send_handle(self.control, theirs.fileno(), self.launcher)
        theirs.close()
        self.pid = None
        heard: dict[str, Any] = {}
        too_much = 0
        while "exit" not in heard:
            for ready in connections.wait([self.control] if "end" in heard else [self.control, mine], timeout=0.5):
                if ready is self.control:
                    self.hear(self.control, heard, report)
                else:
                    self.hear(mine, heard, report)
            self.pid = heard.get("pid")
            if os.getppid() != self.launcher:
                raise RunError(LAUNCHER_GONE)
            tick()
            if self.memory_limit and self.pid and not too_much:
                held = resident(self.pid)
                if held > self.memory_limit:
                    too_much = held
                    os.kill(self.pid, signal.SIGKILL)
        # What was sent just before the end.
        while "end" not in heard:
            self.hear(mine, heard, report)
        mine.close()
        self.pid = None
        return self.outcome(heard, too_much)

    def hear(self, sender: Connection, heard: dict[str, Any], report: Callable[[int, dict[str, float]], str]) -> None:
        """Takes one message of the launcher or the trial, and answers a report."""
        try:
            kind, *rest = sender.recv()
        except (EOFError, OSError):
            if sender is self.control:
                raise RunError(LAUNCHER_GONE) from None
            heard["end"] = True
            return
        if kind == "report":
            answer = report(*rest)
            with contextlib.suppress(OSError):
                sender.send(answer)
        else:
            heard[kind] = rest[0]

    def outcome(self, heard: dict[str, Any], too_much: int) -> dict[str, Any]:
        """What the messages of a trial that is over come to; see `run`."""
        if "fatal" in heard:
            raise RunError(heard["fatal"])
        if too_much:
            error = f"out of memory: {too_much >> 20} MiB, --trial_memory_limit={self.memory_limit >> 20}"
            return {"status": "failed", "error": error, "peak_memory_bytes": too_much}
        if "done" in heard:
            return heard["done"]
        code = heard["exit"]
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (as the kernel does when memory runs out)" if name == "SIGKILL" else ""
            return {"status": "killed", "error": f"killed by {name}{hint}"}
        return {"status": "failed", "error": f"ended with exit code {code}; log.txt has more"}

    def stop(self) -> None:
        """Asks the trial to save and stop."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def resident(process_id: int) -> int:
    """Bytes of memory that a process holds; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)

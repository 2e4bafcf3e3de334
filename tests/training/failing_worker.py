"""A worker of two, `failing_worker.py`: the chief fails in `run_on_chief`, then alone; each prints what ended it."""

from tfgpt.training.config import StrategyConfig
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.strategy import resolve


def fail() -> None:
    raise ZeroDivisionError('a "bug";\n of two lines')


strategy = resolve(StrategyConfig(strategy="multiworker", cluster_timeout=120.0))
for together in (True, False):
    hosts = HostGroup(strategy)
    try:
        with hosts.readable_worker_errors(lambda: "start again"):
            hosts.gather([0.0])
            if together:
                hosts.run_on_chief(fail)
            elif hosts.is_chief:
                fail()
            hosts.gather([0.0])
    except Exception as error:
        print(f"{type(error).__name__} {getattr(error, 'exit_code', 1)}: {error}".replace("\n", " "), flush=True)

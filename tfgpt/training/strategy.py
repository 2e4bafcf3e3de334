"""Which devices the step runs on: from flags to a `tf.distribute.Strategy`."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.training.config import StrategyConfig


def resolve(config: StrategyConfig) -> tf.distribute.Strategy:
    """The strategy that the settings name; call it before anything else touches TensorFlow's devices.

    Use one MirroredStrategy a process on CPUs: a second one's collectives collide with the first one's.

    Args:
        config: the strategy's name and the number of logical CPUs.

    Raises:
        SettingError: the strategy is not there yet, or TensorFlow has already set up its devices.
    """
    if config.strategy in ("multiworker", "tpu"):
        raise SettingError("strategy", f"{config.strategy} comes with a later version; use auto, one or mirrored")
    if config.logical_cpus > 1:
        split_cpu(config.logical_cpus)
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if config.strategy == "one" or (config.strategy == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(devices)


def split_cpu(count: int) -> None:
    """Makes `count` logical devices of the CPU.

    Raises:
        SettingError: the devices are in use already.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise SettingError("logical_cpus", f"cannot be {count} any more: {error}") from error

"""Claim: the requirements of TPU machines name every package that setup.cfg requires."""

import configparser
import re

from tests.conftest import ROOT

# The file's first lines name a second command, which installs these.
INSTALLED_WITHOUT_DEPENDENCIES = {"keras-nlp", "tensorflow", "tensorflow-text"}


def names(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;]", line)[0].strip() for line in lines if line and not line.startswith("#")}


def test_the_requirements_of_tpu_machines_name_what_the_package_requires():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = names(config["options"]["install_requires"].split("\n")) - INSTALLED_WITHOUT_DEPENDENCIES
    assert required <= names((ROOT / "scripts" / "requirements-tpu-vm.txt").read_text().splitlines())

"""Shows that tfgpt installs from wheels alone on systems that this machine is not, without installing anything.

    python scripts/check_wheels.py --platforms=win_amd64,macosx_12_0_arm64 --python=3.12

Runs `pip install --dry-run --only-binary=:all: --platform=…` on install_requires and the extras of setup.cfg. pip reads
environment markers (`; sys_platform != "win32"`) as of the machine it runs on, so they are set to the other system's.
What is published as source alone but holds no C (SOURCES) is built here first, as pip would there.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKERS = {
    "win": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
    "macosx": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
}
# TensorFlow Datasets needs promise.
SOURCES = ("promise",)
# pip itself, its markers those of the other system.
PIP = """
import json, os, sys
from pip._vendor.packaging import markers
own = markers.default_environment
markers.default_environment = lambda: {**own(), **json.loads(os.environ["MARKERS"])}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def requirements(extras: list[str]) -> list[str]:
    """install_requires and the extras' requirements, as setup.cfg has them."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [found["options"]["install_requires"], *(found["options.extras_require"][name] for name in extras)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def build_sources(folder: str) -> None:
    """Wheels of SOURCES; exits where one is not for every platform."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", f"--wheel-dir={folder}", *SOURCES]
    subprocess.run(command, check=True)
    for wheel in Path(folder).glob("*.whl"):
        if not wheel.name.endswith("-none-any.whl"):
            sys.exit(f"{wheel.name}: is for one platform only")


def resolved(platform: str, python: str, wanted: list[str], wheels: str) -> list[str]:
    """Returns "name version" of what pip would install on a platform; exits when there are no wheels."""
    markers = next(values for name, values in MARKERS.items() if platform.startswith(name))
    markers = {**markers, "python_version": python, "python_full_version": f"{python}.0"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-c", PIP, "install", "--dry-run", "--ignore-installed", "--only-binary=:all:",
            f"--platform={platform}", f"--python-version={python}", "--implementation=cp", f"--target={folder}",
            f"--report={report}", f"--find-links={wheels}", *wanted,
        ]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, "MARKERS": json.dumps(markers)}, capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            sys.exit(f"{platform}, Python {python}: does not resolve")
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return sorted(f"{each['metadata']['name'].lower()} {each['metadata']['version']}" for each in installs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platforms", default="win_amd64,macosx_12_0_arm64", help="pip's platform tags")
    parser.add_argument("--python", default="3.11,3.12,3.13", help="versions of Python (default 3.11,3.12,3.13)")
    parser.add_argument("--extras", default="", help="further extras of setup.cfg, such as serve,convert,search")
    options = parser.parse_args()
    wanted = requirements([name for name in options.extras.split(",") if name])
    shown = ("tensorflow", "tensorflow-text", "keras", "keras-hub", "keras-tuner", "sentencepiece", "numpy", "filelock")
    with tempfile.TemporaryDirectory() as wheels:
        build_sources(wheels)
        for platform in options.platforms.split(","):
            for python in options.python.split(","):
                found = resolved(platform, python, wanted, wheels)
                notable = [line for line in found if line.split()[0] in shown]
                print(f"{platform}, Python {python}: {len(found)} wheels: {', '.join(notable)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

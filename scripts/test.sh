#!/usr/bin/env bash
# Everything that must hold: style, types, import directions, tests. Makes .venv and installs tfgpt [dev] first.
# More arguments go to pytest: scripts/test.sh tests/model -k cache
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment dev
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} PATH="$venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"

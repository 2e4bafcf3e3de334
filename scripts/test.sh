#!/usr/bin/env bash
# Everything that must hold: style, types, import directions, tests. Makes .venv and installs tfgpt [dev] first.
# --fast runs style, import directions and the tests of files that take seconds: less than three minutes.
# Other arguments go to pytest, in one process: scripts/test.sh tests/model -k cache
# Without arguments the tests marked slow are left out; scripts/slow_test.sh runs them.
#
# Without arguments, two processes share the tests (pytest-xdist; tests/conftest.py says what stays together): most tests
# trace graphs or import TensorFlow, on one core. They do so in two parts, because a process that has compiled hundreds
# of programs has grown by gigabytes: XLA keeps each of them, about 25 MB a training step and 2 MB a graph, until the
# process ends; neither gc, keras.backend.clear_session nor malloc_trim gives anything back (measured 2026-11-25).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment dev
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} PATH="$venv/bin:$PATH"
ruff check .
ruff format --check .
lint-imports
if [ "${1:-}" = --fast ]; then
  exec python -m pytest -m "not slow and not long" -n 2 --dist loadgroup --no-loadscope-reorder "${@:2}"
fi
mypy
if (($#)); then
  exec python -m pytest "$@"
fi
side_by_side=(-m "not slow" --durations=40 -n 2 --dist loadgroup --no-loadscope-reorder)
in_memory=(tests/model tests/generation tests/diagnosis tests/tokenization)
code=0
python -m pytest "${side_by_side[@]}" tests "${in_memory[@]/#/--ignore=}" || code=$?
python -m pytest "${side_by_side[@]}" "${in_memory[@]}" || code=$?
exit "$code"

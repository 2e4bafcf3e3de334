#!/usr/bin/env bash
# From nothing to a small chat-flavoured model: makes .venv, installs tfgpt with the sample corpora, trains
# configs/quickstart.cfg, shows what the model learned, and says what to type next. More flags are passed on to train.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment samples
exec "$venv/bin/python" -m tfgpt.train --flagfile=configs/quickstart.cfg "$@"

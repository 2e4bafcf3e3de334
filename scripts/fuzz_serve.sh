#!/usr/bin/env bash
# Sends a running server requests made up by schemathesis from its own description: never a 5xx, never a hang, and every
# answer as /openapi.json says. Start the server so that answers are short:
#   python -m tfgpt.serve --model=models/chat --max_tokens_limit=4 --default_max_tokens=4
#   scripts/fuzz_serve.sh http://127.0.0.1:8000 [options of `schemathesis run`, such as --seed=1]
# Makes .venv-fuzz with schemathesis where it is missing; FUZZ_VENV=/path names an environment that you keep yourself.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
address=${1:?the address of a running server, such as http://127.0.0.1:8000}
shift
venv=${FUZZ_VENV:-$root/.venv-fuzz}
if [ ! -x "$venv/bin/schemathesis" ]; then
  echo "Installing schemathesis into $venv …" >&2
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'schemathesis>=4,<5'
fi
exec "$venv/bin/schemathesis" run "${address%/}/openapi.json" \
  --phases=examples,coverage,fuzzing --max-examples=300 --request-timeout=60 \
  --checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance "$@"

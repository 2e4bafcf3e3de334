#!/usr/bin/env bash
# Compiles the training step of a configuration for TPUs, with no TPU: what fits, how many operations.
#   scripts/tpu_compile.sh --flagfile=configs/tpu_gpt2_124m_v5e.cfg --chips=v5e --largest --json=results.json
# Makes .venv (tfgpt, which exports the step) and .venv-tpu (jax and libtpu, which compile it) where they are missing.
# VENV=/path and TPU_VENV=/path name environments that you keep yourself. --help says the rest.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$PWD
cd "$root"
. scripts/environment.sh
make_environment samples
tpu_venv=${TPU_VENV:-$root/.venv-tpu}
if [ -z "${TPU_VENV:-}" ] && [ "$(cat "$tpu_venv/.installed" 2>/dev/null)" != "$(cksum <scripts/requirements-tpu-compile.txt)" ]; then
  echo "Installing jax and libtpu into $tpu_venv (about 230 MB) …" >&2
  [ -x "$tpu_venv/bin/python" ] || "$venv/bin/python" -m venv "$tpu_venv"
  "$tpu_venv/bin/python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements-tpu-compile.txt
  cksum <scripts/requirements-tpu-compile.txt >"$tpu_venv/.installed"
fi
cd "$here"
exec "$tpu_venv/bin/python" "$root/scripts/tpu_compile.py" --python="$venv/bin/python" "$@"

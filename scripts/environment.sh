# Sourced by quickstart.sh and test.sh: makes .venv and installs tfgpt with the extras named in $1, once.
# PYTHON=/path/to/python3.12 chooses the interpreter. VENV=/path names an environment that you keep yourself: it is used
# as it is and nothing is installed into it.

make_environment() {
  local extras=$1 python=${PYTHON:-} candidate wanted
  if [ -n "${VENV:-}" ]; then
    venv=$VENV
    return
  fi
  venv=$PWD/.venv
  if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11 python; do
      if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
  fi
  if [ -z "$python" ]; then
    echo "tfgpt needs Python 3.11 to 3.13 and found none on PATH; set PYTHON=/path/to/python3" >&2
    exit 2
  fi
  # Installed again only when what is to be installed has changed. [dev] contains [samples].
  wanted="$(cat setup.cfg pyproject.toml | cksum) $("$python" -V 2>&1) $PWD"
  if [ "$(cat "$venv/.installed-$extras" 2>/dev/null)" = "$wanted" ] ||
    [ "$(cat "$venv/.installed-dev" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "Installing tfgpt [$extras] into $venv (a few minutes the first time) …"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
  echo "$wanted" >"$venv/.installed-$extras"
}

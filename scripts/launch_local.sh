#!/usr/bin/env bash
# N worker processes on this machine, as a cluster of --strategy=multiworker: to try out what several hosts will do.
#
#   scripts/launch_local.sh 2 --flagfile=configs/quickstart.cfg
#   scripts/launch_local.sh 2 evaluate --model=runs/quickstart
#
# The command is train where none is named.
#
# Worker 0, the chief, writes to this terminal; the others write to LOG_DIR/worker-1.log, … (LOG_DIR: a new folder under
# the system's temporary one) and their errors are shown at the end. Ctrl-C and SIGTERM go to every worker: they save
# and stop. The cores are divided among the workers. Exit code: the first that is not 0.
set -euo pipefail
usage() {
  echo "usage: scripts/launch_local.sh NUMBER_OF_WORKERS [train|evaluate] --flag=value …" >&2
  exit 2
}
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift
command=train
if [[ ${1:-} == train || ${1:-} == evaluate ]]; then
  command=$1
  shift
fi
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=python
logs=${LOG_DIR:-$(mktemp -d -t tfgpt-workers-XXXXXX)}
mkdir -p "$logs"

# Free ports, all held at once so that they differ; below those that Linux gives to connections going out, which would
# take one of them before the workers do.
addresses=$("$python" -c '
import contextlib, json, random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    with contextlib.suppress(OSError):
        held.append(socket.create_server(("localhost", random.randint(20000, 32000))))
print(json.dumps([f"localhost:{one.getsockname()[1]}" for one in held]))' "$count")
threads=$((($(nproc) + count - 1) / count))
export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$threads} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}

pids=()
stop() { for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done; }
trap stop TERM
# At a terminal Ctrl-C reaches every worker by itself; this shell goes on waiting for them.
trap : INT
echo "$count workers at $addresses; logs of workers 1 and up: $logs"
for ((index = 0; index < count; index++)); do
  export TF_CONFIG="{\"cluster\": {\"worker\": $addresses}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
  if ((index == 0)); then
    "$python" -m "tfgpt.$command" --strategy=multiworker "$@" &
  else
    "$python" -m "tfgpt.$command" --strategy=multiworker "$@" >"$logs/worker-$index.log" 2>&1 &
  fi
  pids+=($!)
done
code=0
for index in "${!pids[@]}"; do
  result=0
  # wait returns early, above 128, when a trap has run: ask again while the worker lives.
  while :; do
    result=0
    wait "${pids[$index]}" || result=$?
    kill -0 "${pids[$index]}" 2>/dev/null || break
  done
  if ((result != 0)); then
    ((code != 0)) || code=$result
    echo "worker $index ended with exit code $result" >&2
    ((index == 0)) || tail -n 3 "$logs/worker-$index.log" >&2
  fi
done
exit "$code"

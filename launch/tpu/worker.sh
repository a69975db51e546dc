#!/usr/bin/env bash
# What happens on a worker of a pod. setup.sh copies it there; setup.sh and run.sh call it.
#
#   worker.sh install PYTHON REQUIREMENT
#   worker.sh run ID WORKDIR COMPILE_CACHE ARGUMENT...
#   worker.sh stop
#
# A run goes on without its caller. gcloud starts a command anew where the connection breaks, so the second `run` of
# an ID does not start it again: it shows what is printed from there on, and returns the status of the first.
# ID-check is the check before run ID, and done where that run has been started.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=$here/venv/bin/python

install() { # PYTHON REQUIREMENT
  python3 -m pip install --quiet --user --upgrade uv
  [ -x "$python" ] || python3 -m uv venv --quiet --python "$1" "$here/venv"
  # The version of the package says nothing about its code.
  python3 -m uv pip install --quiet --python "$python" --reinstall-package hra_jax "$2"
  "$python" -c 'import hra_jax, jax; print("ready: jax", jax.__version__)'
}

copy_log() { # FOLDER TARGET
  nice "$python" -c 'import sys; from etils import epath
target = epath.Path(sys.argv[2])
target.parent.mkdir(parents=True, exist_ok=True)
target.write_bytes(open(sys.argv[1], "rb").read())' "$1/log" "$2" || echo "the log could not be copied to $2"
}

finish() { # FOLDER STATUS
  echo "$2" >"$1/status.new"
  mv "$1/status.new" "$1/status"
  exit 0
}

# The process that outlives the connection.
supervise() { # ID WORKDIR COMPILE_CACHE ARGUMENT...
  local folder=$here/runs/$1 log child copier status=0
  log=$2/logs/$1/$(hostname).log
  echo $$ >"$folder/pid"
  exec 9>"$here/lock"
  if ! flock --nonblock 9; then
    echo "error: this worker is busy with run $(cat "$here/current"); allowed: --run-id of that run, or --stop"
    finish "$folder" 2
  fi
  echo "$1" >"$here/current"
  # The signals are for the run, which saves; this process stays to note its status.
  trap : TERM INT HUP
  JAX_COMPILATION_CACHE_DIR=$3 "$python" "${@:4}" 9>&- &
  child=$!
  echo "$child" >"$here/child"
  while sleep "${HRA_LOG_SECONDS:-300}"; do copy_log "$folder" "$log"; done 9>&- &
  copier=$!
  # A signal ends `wait` and not the run.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  kill "$copier" 2>/dev/null || true
  copy_log "$folder" "$log"
  finish "$folder" "$status"
}

run() { # ID WORKDIR COMPILE_CACHE ARGUMENT...
  local folder=$here/runs/$1 lines=+1 try
  [[ $1 != *-check || ! -d ${folder%-check} ]] || exit 0
  mkdir -p "$here/runs"
  if mkdir "$folder" 2>/dev/null; then
    touch "$folder/log"
    setsid bash "$here/worker.sh" supervise "$@" </dev/null >>"$folder/log" 2>&1 &
  else
    lines=20
  fi
  for ((try = 0; try < 100; try++)); do
    [ ! -s "$folder/pid" ] || break
    sleep 0.1
  done
  tail --pid="$(cat "$folder/pid")" -n "$lines" -f "$folder/log"
  if [ ! -e "$folder/status" ]; then
    echo "error: run $1 ended without a status: the machine was restarted, or it was killed" >&2
    exit 1
  fi
  exit "$(cat "$folder/status")"
}

stop() {
  if [ ! -e "$here/lock" ] || flock --nonblock "$here/lock" true; then
    echo "no run is going on"
  else
    kill -TERM "$(cat "$here/child")"
    echo "run $(cat "$here/current") was told to save and stop"
  fi
}

case ${1:-} in
  install | run | stop | supervise) "$@" ;;
  *)
    echo "worker.sh: error: act '${1:-}'; allowed: install, run, stop" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# What scripts/tpu.sh does on one worker: install, and a run in the background.
#
#     scripts/worker.sh install            a virtual environment with the tested versions
#     scripts/worker.sh start COMMAND...   keeps it running after the connection is gone
#     scripts/worker.sh state              easylm: HOST, and one of the words below
#     scripts/worker.sh log [-f]           what it printed, with -f also what it will
#     scripts/worker.sh stop               asks it to save and stop, and waits for it
#
# State: none, running, stopped (by `stop`), lost (killed with this machine), or the
# exit code it ended with. Everything is in ~/easylm-run.
set -euo pipefail

code_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$HOME/easylm-run

install() { # Cloud TPU images come with Python 3.10, EasyLM needs 3.11
  cd "$code_folder"
  [[ -x .venv/bin/pip ]] || python3.12 -m venv .venv 2>/dev/null ||
    python3.11 -m venv .venv 2>/dev/null || with_uv
  .venv/bin/pip install --quiet -c constraints.txt -e '.[tpu,gcs]'
}

with_uv() { # brings its own Python
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --clear --seed --python 3.12 .venv
}

start() {
  mkdir -p "$folder"
  local command
  command=$(printf '%q ' "$@")
  if running; then
    [[ $command == "$(<"$folder/command")" ]] || {
      echo "error: $(hostname) runs another command; stop it first: tpu.sh stop" >&2
      exit 2
    }
    echo "$(hostname): is running already"
    return
  fi
  rm -f "$folder"/{pid,code,stopped}
  echo "$command" >"$folder/command"
  cd "$code_folder"
  echo "$(date '+%F %T') $command" >>"$folder/log"
  # shellcheck disable=SC2016
  PATH=$code_folder/.venv/bin:$PATH setsid bash -c '
    folder=$1 && shift
    "$@" &
    echo $! >"$folder/pid"
    wait $! && code=0 || code=$?
    echo $code >"$folder/code"
  ' worker "$folder" bash scripts/keep_running.sh "$@" >>"$folder/log" 2>&1 </dev/null &
  until [[ -s $folder/pid ]]; do sleep 0.05; done
  echo "$(hostname): started; its log is $folder/log"
}

running() {
  [[ -s $folder/pid && ! -s $folder/code ]] &&
    [[ $(ps -o args= -p "$(<"$folder/pid")") == *keep_running.sh* ]]
}

state() {
  local word=none
  if running; then
    word=running
  elif [[ -s $folder/pid ]]; then
    for _ in 1 2 3 4 5; do # it may be writing its code
      [[ -s $folder/code ]] || sleep 0.2
    done
    word=$(cat "$folder/code" 2>/dev/null || echo lost)
    [[ ! -e $folder/stopped || $word != 75 ]] || word=stopped
  fi
  echo "easylm: $(hostname) $word"
}

log() {
  local lines=(-n 100)
  [[ ${1-} != -f ]] || lines+=(-F)
  tail "${lines[@]}" "$folder/log" | sed -u "s/^/$(hostname): /"
}

stop() {
  if running; then
    touch "$folder/stopped"
    kill -TERM "$(<"$folder/pid")"
    while running; do sleep 0.2; done
    until [[ -s $folder/code ]]; do sleep 0.05; done
  fi
  state
}

case ${1-} in
  install | start | state | log | stop) "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

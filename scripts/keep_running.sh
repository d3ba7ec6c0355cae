#!/usr/bin/env bash
# Keeps a run going: starts it again after it was stopped from outside or has crashed.
#
#     scripts/keep_running.sh [--tries 5] [--pause 10] COMMAND...
#
# COMMAND resumes where it was when it is run again, and ends with the exit codes of
# easylm.train: 0 done, 2 something to fix, 75 stopped and saved. This script ends with
# 0 and 2 as they come, and starts COMMAND again after everything else: at most --tries
# times in a row without a new checkpoint in the --workdir that COMMAND names, after
# --pause seconds, then twice as many, up to a minute (all hosts of a run must be back
# within five). If it gives up, it ends with the code of the crash.
#
# SIGTERM and Ctrl-C are passed on, and waited for; the code is then 75 unless the run
# was done. Each is passed on as the other one, because who sends it (systemd when a VM
# is preempted, Slurm) may send it to the run, too, and a run that gets the same signal
# twice dies without saving. Send it to this script twice, and it goes through as it is.
set -euo pipefail

main() {
  local tries=5 pause=10
  while [[ ${1-} == -* ]]; do
    case $1 in
      --help) usage ;;
      --tries | --pause)
        [[ ${2-} =~ ^[0-9]+$ ]] || die "$1 wants a whole number, such as $1 5"
        [[ $1 == --tries ]] && tries=$2 || pause=$2
        shift 2
        ;;
      *) die "unknown flag $1; flags of this script are --tries and --pause" ;;
    esac
  done
  [[ $# -gt 0 ]] || die "give the command to run: keep_running.sh python -m easylm.train ..."
  workdir=$(workdir_of "$@")
  keep "$tries" "$pause" "$@"
}

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
}

die() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "keep_running: $(date '+%F %T') $*" >&2
}

# A script that was started with & ignores Ctrl-C, and so would all that it starts.
listening=()
env --default-signal=INT true 2>/dev/null && listening=(env --default-signal=INT)

asked=0       # how many signals came
interrupt() { # NAME: what to send on when NAME comes, to the run or to the pause
  local other=INT
  [[ $1 != INT ]] || other=TERM
  asked=$((asked + 1))
  [[ $asked == 1 ]] || other=$1
  [[ -z ${current-} ]] || kill "-$other" "$current" 2>/dev/null || true
}
trap 'interrupt TERM' TERM
trap 'interrupt HUP' HUP
trap 'interrupt INT' INT

keep() { # TRIES PAUSE COMMAND...
  local tries=$1 pause=$2 failures=0 wait code before="" now
  shift 2
  while :; do
    run "$@"
    case $code in 0 | 2) exit "$code" ;; esac
    [[ $asked == 0 ]] || stopped "$code"
    now=$(checkpoint) || now=$before
    [[ $now == "$before" ]] || failures=0
    before=$now failures=$((failures + 1))
    if [[ $failures -gt $tries ]]; then
      say "exit code $code, $failures times without a new checkpoint; giving up"
      [[ $code == 75 ]] && exit 1 || exit "$code"
    fi
    wait=$((failures > 6 ? 60 : pause << (failures - 1)))
    [[ $wait -le 60 ]] || wait=60
    say "exit code $code; starting again in $wait s ($failures of $tries)"
    run sleep "$wait"
    [[ $asked == 0 ]] || exit 75
  done
}

run() { # COMMAND...: sets code, also when a signal comes in between
  local seen
  set -m # a process group for the run: Ctrl-C reaches it through this script, once
  ${listening[@]+"${listening[@]}"} "$@" </dev/null &
  current=$!
  set +m
  [[ $asked == 0 ]] || kill -INT "$current" 2>/dev/null || true # it came before the run
  while :; do
    seen=$asked code=0
    wait "$current" 2>/dev/null || code=$?
    [[ $seen != "$asked" ]] || break
  done
  # Bash can lose the code of what ends just as a signal comes; 75 is never wrong.
  [[ $code -ge 0 ]] || code=75
  current=
}

stopped() { # CODE: how it ends when it was asked to
  case $1 in
    75 | 129 | 130 | 143) exit 75 ;; # saved, or nothing to save yet
    *) say "exit code $1 while stopping"; exit "$1" ;;
  esac
}

workdir_of() { # COMMAND...: what it has after --workdir
  local word last=
  for word; do
    case $word in --workdir=* | -workdir=*) echo "${word#*=}" ;; esac
    case $last in --workdir | -workdir) echo "$word" ;; esac
    last=$word
  done | tail -n 1
}

checkpoint() { # the number of the last one in the workdir, if there is any
  case $workdir in
    "") ;;
    *://*)
      python -c '
import sys
from etils import epath
folder = epath.Path(sys.argv[1]) / "checkpoints"
names = [path.name for path in folder.iterdir()] if folder.exists() else []
print(max((int(name) for name in names if name.isdigit()), default=""))' "$workdir"
      ;;
    *)
      local folder
      for folder in "$workdir"/checkpoints/*; do
        [[ ! ${folder##*/} =~ ^[0-9]+$ ]] || echo "${folder##*/}"
      done | sort -n | tail -n 1
      ;;
  esac
}

main "$@"

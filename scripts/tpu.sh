#!/usr/bin/env bash
# scripts/tpu.sh COMMAND [flags] [-- arguments]       Cloud TPU pods, by queued resources
#
#   create    asks for the TPU; the request may wait for its turn
#   status    the state of the request, and of the run on each worker
#   setup     brings this code and its packages to every worker
#   run       starts easylm.train on every worker:      -- --config FILE --workdir DIR ...
#   logs      what the run printed                      [--worker N|all] [--follow]
#   watch     create, setup and run, and all of it again after every preemption, until
#             the run is done; arguments as for run
#   stop      asks the run to save and stop, and waits until it has
#   ssh       a shell on a worker, or a command         [--worker N|all] [-- COMMAND]
#   delete    gives the TPU back, whatever runs on it
#
#   flag                  else       else
#   --name NAME           NAME                   of the request and its TPUs
#   --zone ZONE           ZONE
#   --project PROJECT     PROJECT
#   --accelerator TYPE    ACCELERATOR            v2-N v3-N v4-N v5litepod-N v5p-N v6e-N
#   --slices N            SLICES     1           TPUs of that type, for one run
#   --spot                SPOT=1     on demand   cheaper, and taken away at any time
#   --runtime VERSION     RUNTIME    by type     the image of the workers
#   --create-flag FLAG    (repeat)               for gcloud ... create: --network=NET, ...
#   --connect-flag FLAG   (repeat)               for gcloud ... ssh and scp: --internal-ip, ...
#   --repo URL            REPO       this folder is copied; else workers clone its commit
#   --env KEY=VALUE       (repeat)               in the environment of the run
#   --worker N|all                   0           of logs and ssh
#   --slice N|all                    0           of logs and ssh; all for --worker all
#   --every SECONDS       EVERY      60          how often watch looks
#   --dry-run                                    prints the commands, does nothing
#
# All after -- goes to easylm.train as it is. Exit codes: 0; 2 for something to fix; of
# watch, that of the run, and 75 if it was stopped with `stop`. docs/launch.md has more.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/launch/shell.sh
source "$root/scripts/launch/shell.sh"

SLICES=${SLICES-1} EVERY=${EVERY-60} SPOT=${SPOT-} REPO=${REPO-} DRY_RUN=
worker=0 slice="" follow="" create_flags=() connect_flags=() environment=() arguments=()
on_worker="bash EasyLM/scripts/worker.sh"

main() {
  local command=${1---help}
  case $command in
    -h | --help | help) help_of "${BASH_SOURCE[0]}" && exit ;;
    create | status | setup | run | logs | watch | stop | ssh | delete) shift ;;
    *) die "unknown command '$command'; there are create status setup run logs watch stop ssh delete" ;;
  esac
  read_flags "$@"
  need_value NAME "--name my-run, or set NAME"
  [[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    die "the name '$NAME' may have small letters, digits and - only; write --name my-run"
  need_value ZONE "--zone us-central2-b, or set ZONE"
  need_value PROJECT "--project my-project, or set PROJECT"
  need_count SLICES --slices
  [[ $EVERY =~ ^[0-9]+$ ]] || die "--every wants seconds, not '$EVERY'"
  need gcloud https://cloud.google.com/sdk/docs/install
  # All workers of one slice make no sense, unless they are asked for.
  slice=${slice:-$([[ $worker == all ]] && echo all || echo 0)}
  place=(--zone="$ZONE" --project="$PROJECT")
  "do_$command"
}

read_flags() {
  local flag value
  while [[ $# -gt 0 ]]; do
    flag=${1%%=*} value=1
    case $1 in
      --) shift && arguments=("$@") && return ;;
      --dry-run | --spot | --follow | -f | -h | --help) shift ;;
      --*=*) value=${1#*=} && shift ;;
      *) value=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
    esac
    case $flag in
      --dry-run) DRY_RUN=1 ;;
      --spot) SPOT=1 ;;
      --follow | -f) follow=" -f" ;;
      -h | --help) help_of "${BASH_SOURCE[0]}" && exit ;;
      --name) NAME=$value ;;
      --zone) ZONE=$value ;;
      --project) PROJECT=$value ;;
      --accelerator) ACCELERATOR=$value ;;
      --slices) SLICES=$value ;;
      --runtime) RUNTIME=$value ;;
      --create-flag) create_flags+=("$value") ;;
      --connect-flag) connect_flags+=("$value") ;;
      --repo) REPO=$value ;;
      --env)
        [[ $value == *=* ]] || die "--env wants KEY=VALUE, not '$value'"
        environment+=("$value")
        ;;
      --worker) worker=$value ;;
      --slice) slice=$value ;;
      --every) EVERY=$value ;;
      *) die "unknown flag '$flag'; those of easylm.train come after --" ;;
    esac
    [[ -n $value ]] || die "$flag has no value"
  done
}

# What gcloud is asked

resource() { # VERB ARGUMENT...
  perform gcloud compute tpus queued-resources "$@" "${place[@]}"
}

remote() { # SLICE WORKER LINE: a line for the shells of these workers
  resource ssh "$NAME" --node="$1" --worker="$2" \
    ${connect_flags[@]+"${connect_flags[@]}"} --command="$3"
}

do_create() {
  local how=(--node-id="$NAME")
  need_value ACCELERATOR "--accelerator v5litepod-16, or set ACCELERATOR"
  check_accelerator "$ACCELERATOR"
  [[ $SLICES == 1 ]] || how=(--node-count="$SLICES" --node-prefix="$NAME")
  [[ -z $SPOT ]] || how+=(--spot)
  resource create "$NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="${RUNTIME-$(runtime_for "$ACCELERATOR")}" \
    "${how[@]}" ${create_flags[@]+"${create_flags[@]}"}
}

runtime_for() { # TYPE: what Google names for JAX
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

do_delete() {
  resource delete "$NAME" --force --quiet
}

ask_state() { # ACTIVE, SUSPENDED, ...
  resource describe "$NAME" --format="value(state.state)"
}

ask_run() { # a line for each worker: easylm: HOST STATE
  remote all all "$on_worker state 2>/dev/null || echo \"easylm: \$(hostname) none\""
}

do_status() {
  if [[ -n $DRY_RUN ]]; then
    ask_state && ask_run
  else
    local state
    state=$(ask_state)
    echo "$NAME: $state"
    [[ $state != ACTIVE ]] || ask_run
  fi
}

do_setup() {
  if [[ -n $REPO ]]; then
    clone
  else
    copy
  fi && remote all all "$on_worker install"
}

clone() {
  local commit
  commit=$(git -C "$root" rev-parse HEAD)
  [[ -z $(git -C "$root" status --porcelain) ]] ||
    echo "note: workers get commit $commit, without the changes in this folder" >&2
  remote all all "{ [ -d EasyLM ] || git clone --quiet $(quote "$REPO") EasyLM; } && cd EasyLM && git fetch --quiet origin && git checkout --quiet --force $commit"
}

copy() {
  local file=${TMPDIR:-/tmp}/$NAME.tar.gz
  comment "the files of this folder that git does not ignore are packed into $file"
  { [[ -n $DRY_RUN ]] || pack "$file"; } && resource scp "$file" "$NAME:easylm.tar.gz" --node=all --worker=all \
    ${connect_flags[@]+"${connect_flags[@]}"} &&
    remote all all "mkdir -p EasyLM && tar -xzf easylm.tar.gz -C EasyLM"
}

pack() { # FILE: through an index of its own, so that git's is left alone
  local index
  index=$(mktemp -d)
  (
    cd "$root" && cp "$(git rev-parse --git-path index)" "$index/index" || exit
    export GIT_INDEX_FILE=$index/index
    git add --all && git archive --format=tar.gz --output="$1" "$(git write-tree)"
  ) && rm -rf "$index"
}

do_run() {
  check_arguments
  local line
  line=$(quote ${environment[@]+env "${environment[@]}"} python -m easylm.train \
    --coordinator=auto "${arguments[@]}")
  remote all all "$on_worker start $line"
}

check_arguments() {
  arguments_need config ${arguments[@]+"${arguments[@]}"}
  arguments_need workdir ${arguments[@]+"${arguments[@]}"}
}

do_logs() {
  remote "$slice" "$worker" "$on_worker log$follow"
}

do_stop() {
  remote all all "$on_worker stop"
}

do_ssh() {
  if [[ ${#arguments[@]} -gt 0 ]]; then
    remote "$slice" "$worker" "${arguments[*]}"
  else
    resource ssh "$NAME" --node="$slice" --worker="$worker" \
      ${connect_flags[@]+"${connect_flags[@]}"}
  fi
}

# Watch: what is asked again and again, and what is done about it

do_watch() {
  check_arguments
  check_lasting
  need_value ACCELERATOR "--accelerator v5litepod-16, or set ACCELERATOR"
  check_accelerator "$ACCELERATOR"
  if [[ -n $DRY_RUN ]]; then
    print_watch
    return
  fi
  local state before="" failed=0
  errors=$(mktemp)
  trap 'rm -f "$errors"' EXIT
  while :; do
    state=$(request_state)
    [[ $state == "$before" ]] || say "the request is $state"
    case $state in
      NONE) create_again "$before" ;;
      FAILED | SUSPENDED)
        [[ $state == SUSPENDED ]] || failed=$((failed + 1))
        [[ $failed -lt 2 ]] || give_up "the request failed twice; gcloud compute tpus queued-resources describe $NAME says why"
        renew
        ;;
      ACTIVE) failed=0 && { look_after_run || true; } ;;
      UNKNOWN)
        cat "$errors" >&2
        [[ -n $before ]] || exit 1
        ;;
    esac
    before=$state
    sleep "$EVERY"
  done
}

check_lasting() { # what a preempted TPU had on its disk is gone
  local word workdir="" last=""
  for word in "${arguments[@]}"; do
    case $word in --workdir=* | -workdir=*) workdir=${word#*=} ;; esac
    case $last in --workdir | -workdir) workdir=$word ;; esac
    last=$word
  done
  [[ $workdir == *://* || $workdir == /* ]] ||
    die "--workdir $workdir is lost with the TPU's disk; give gs://BUCKET/$workdir"
}

say() {
  echo "$(date '+%F %T') $*"
}

give_up() { # TEXT [CODE]
  say "$1" >&2
  exit "${2-1}"
}

request_state() {
  if ask_state 2>"$errors"; then
    return
  fi
  if grep -q NOT_FOUND "$errors"; then echo NONE; else echo UNKNOWN; fi
}

create_again() { # STATE BEFORE: the first failure is the user's, later ones pass
  do_create && return
  [[ -n $1 ]] || give_up "the request was refused; gcloud says why above"
  say "the request was refused; asking again"
}

renew() {
  say "deleting it, to ask for a new one"
  do_delete || say "that failed; trying again"
}

look_after_run() {
  local states code
  if ! nodes_live; then
    renew
    return
  fi
  states=$(ask_run 2>"$errors" | sed -n 's/^easylm: [^ ]* //p' | sort -u) || true
  [[ -n $states ]] || { say "no worker answers yet" && tail -n 3 "$errors"; }
  if says 2; then
    show_log && give_up "the run ended with 2: fix what it says above" 2
  elif says stopped; then
    give_up "the run was stopped; the same command goes on" 75
  elif code=$(grep -vxE '0|75|[a-z]+' <<<"$states"); then
    show_log && give_up "the run ended with ${code%%$'\n'*}, again and again" "${code%%$'\n'*}"
  elif says none; then
    attempt do_setup && attempt do_run
  elif says lost || says 75; then
    attempt do_run
  elif [[ $states == 0 ]]; then
    say "the run is done; the TPU is still yours: scripts/tpu.sh delete"
    exit 0
  fi
}

says() { # STATE: whether some worker is in it
  grep -qx "$1" <<<"$states"
}

nodes_live() { # also seen here: a preempted slice whose request is still ACTIVE
  local i node state
  for ((i = 0; i < SLICES; i++)); do
    node=$NAME
    [[ $SLICES == 1 ]] || node=$NAME-$i
    state=$(gcloud compute tpus tpu-vm describe "$node" --format="value(state)" \
      "${place[@]}" 2>"$errors") || continue
    case $state in
      PREEMPTED | TERMINATED) say "TPU $node is $state" && return 1 ;;
    esac
  done
}

attempts=0
attempt() { # FUNCTION: workers may not be ready yet, but not for ever
  say "${1#do_}"
  if "$1"; then
    [[ $1 != do_run ]] || attempts=0
  else
    attempts=$((attempts + 1))
    [[ $attempts -lt 5 ]] || give_up "${1#do_} failed 5 times; the last error is above"
    say "${1#do_} failed; trying again"
    return 1
  fi
}

show_log() {
  worker=all slice=all
  do_logs || true
}

print_watch() {
  comment "every $EVERY s, the request and its TPUs:"
  ask_state
  local i
  for ((i = 0; i < SLICES; i++)); do
    perform gcloud compute tpus tpu-vm describe "$NAME$([[ $SLICES == 1 ]] || echo "-$i")" \
      --format="value(state)" "${place[@]}"
  done
  comment "if it is SUSPENDED or FAILED, or one of them is PREEMPTED or TERMINATED:"
  do_delete
  comment "if there is none:"
  do_create
  comment "if it is ACTIVE, the run:"
  ask_run
  comment "if a worker is new:"
  do_setup
  comment "if a worker is new, was lost, or was stopped by somebody else (75):"
  do_run
  comment "if a run has failed for good (2, or again and again), and the watch ends:"
  show_log
}

main "$@"

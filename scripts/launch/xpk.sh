#!/usr/bin/env bash
# scripts/launch/xpk.sh COMMAND [--dry-run] [-- arguments of easylm.train]     GKE, by XPK
#
#   cluster    makes a GKE cluster with SLICES TPU slices, JobSet and Kueue
#   run        submits a run, which restarts from its last checkpoint
#   stop       deletes the run; its workdir stays
#   delete     deletes the cluster
#
#   CLUSTER, ZONE, PROJECT    where
#   ACCELERATOR               v4-N v5litepod-N v5p-N v6e-N, the type of a slice
#   SLICES                    1
#   SPOT                      1 for spot, else on demand
#   NAME                      of the run
#   IMAGE                     made by scripts/launch/Dockerfile
#   RESTARTS                  100, those of the whole run, preemptions included
#
# --dry-run prints the command. XPK: pip install xpk; written for its version 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/launch/shell.sh
source "$root/scripts/launch/shell.sh"

main() {
  local command=${1---help}
  case $command in
    -h | --help | help) help_of "${BASH_SOURCE[0]}" && exit ;;
    cluster | run | stop | delete) shift ;;
    *) die "unknown command '$command'; there are cluster run stop delete" ;;
  esac
  DRY_RUN='' SLICES=${SLICES-1}
  [[ ${1-} != --dry-run ]] || { DRY_RUN=1 && shift; }
  [[ $# == 0 || $1 == -- ]] || die "unknown flag '$1'; settings are in the environment, arguments of easylm.train come after --"
  [[ $# == 0 ]] || shift
  need_value CLUSTER CLUSTER=my-cluster
  need_value ZONE ZONE=us-east5-b
  need_value PROJECT PROJECT=my-project
  need_count SLICES SLICES
  need xpk https://github.com/AI-Hypercomputer/xpk
  where=(--cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT")
  "do_$command" "$@"
}

slices() { # the flags that both the cluster and its runs have
  need_value ACCELERATOR ACCELERATOR=v5litepod-16
  check_accelerator "$ACCELERATOR"
  what=(--tpu-type="$ACCELERATOR" --num-slices="$SLICES")
}

do_cluster() {
  slices
  perform xpk cluster create "${where[@]}" "${what[@]}" \
    "$([[ -n ${SPOT-} ]] && echo --spot || echo --on-demand)"
}

# XPK restarts a run that ends with 42 or 127 to 255 by itself; 1 is a Python error.
do_run() {
  slices
  need_value NAME NAME=my-run
  need_value IMAGE IMAGE=us-docker.pkg.dev/my-project/easylm/easylm
  arguments_need config "$@"
  arguments_need workdir "$@"
  perform xpk workload create "${where[@]}" "${what[@]}" --workload="$NAME" \
    --docker-image="$IMAGE" --max-restarts="${RESTARTS-100}" \
    --restart-on-exit-codes=1,75 --termination-grace-period-seconds=300 \
    --command="exec bash scripts/keep_running.sh --tries 2 $(quote python -m easylm.train --coordinator=auto "$@")"
}

do_stop() {
  need_value NAME NAME=my-run
  perform xpk workload delete "${where[@]}" --workload="$NAME"
}

do_delete() {
  perform xpk cluster delete "${where[@]}"
}

main "$@"

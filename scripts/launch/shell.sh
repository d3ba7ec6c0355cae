# Shared by tpu.sh and xpk.sh: errors, and commands that are run or only printed.
# shellcheck shell=bash

die() {
  echo "error: $*" >&2
  exit 2
}

help_of() { # FILE: the comment at its head
  sed -n '2,/^[^#]/{/^[^#]/d;/^$/d;s/^# \{0,1\}//;p;}' "$1"
}

quote() { # WORD...: one line that a shell reads as these words
  local word head line="" mark="'\\''"
  for word; do
    head=
    [[ ! $word =~ ^--?[A-Za-z_.-]+= ]] || head=${BASH_REMATCH[0]}
    word=${word#"$head"}
    [[ $head$word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/$mark}'"
    line+=" $head$word"
  done
  echo "${line# }"
}

perform() { # COMMAND...: runs it, or prints it for --dry-run
  if [[ -n ${DRY_RUN-} ]]; then quote "$@"; else "$@"; fi
}

comment() { # TEXT...: what a printed command is for
  [[ -z ${DRY_RUN-} ]] || echo "# $*"
}

need() { # PROGRAM URL
  [[ -n ${DRY_RUN-} ]] || command -v "$1" >/dev/null ||
    die "$1 is not installed; see $2, or add --dry-run to see the commands"
}

need_value() { # NAME FIX: a setting that has no default
  [[ -n ${!1-} ]] || die "no $1; give $2"
}

need_count() { # NAME FLAG
  [[ ${!1} =~ ^[1-9][0-9]*$ ]] || die "$2 wants a number from 1, not '${!1}'"
}

arguments_need() { # FLAG ARGUMENT...: whether --FLAG is among those of easylm.train
  local flag=$1 word
  shift
  for word; do
    case $word in -"$flag" | --"$flag" | -"$flag"=* | --"$flag"=*) return ;; esac
  done
  die "give easylm.train its --$flag after --, as in: -- --config configs/sft.py --workdir gs://bucket/run"
}

check_accelerator() { # TYPE
  case $1 in
    v5e-*) die "Cloud TPU calls $1 v5litepod-${1#*-}" ;;
    v7x-* | tpu7x-*) die "$1 is there through GKE only; see scripts/launch/gke.yaml" ;;
    v2-* | v3-* | v4-* | v5litepod-* | v5p-* | v6e-*)
      [[ ${1#*-} =~ ^[1-9][0-9]*$ ]] || die "accelerator type '$1' has no size; write ${1%%-*}-16, say"
      ;;
    *) die "unknown accelerator type '$1'; known are v2-N v3-N v4-N v5litepod-N v5p-N v6e-N" ;;
  esac
}

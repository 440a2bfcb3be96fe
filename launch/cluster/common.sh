# shellcheck shell=bash disable=SC2034
# What up.sh and down.sh share: where the cluster lies, and which processes are its own. Sourced by both.

ROOT=$(realpath -m "${CLUSTER_ROOT:-/tmp/sae_outliers_slurm}")
MARK=$ROOT/.sae_outliers_cluster # up.sh made this folder, and down.sh may empty it
export SLURM_CONF=$ROOT/etc/slurm.conf

say() { echo "$(basename "$0"): $*"; }
die() { echo "$(basename "$0"): $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root, for SLURM's daemons switch users: call it with sudo, or in a container"

# attempt SECONDS COMMAND...: try a command until it succeeds; 1 if it did not in that time, with what it said in $said
attempt() {
  local end=$((SECONDS + $1))
  shift
  while [ "$SECONDS" -le "$end" ]; do
    said=$("$@" 2>&1) && return
    sleep 0.1
  done
  return 1
}

# pids_of PROGRAM FILE: processes of a program that hold a file, or one below a folder, open. Each daemon holds its log.
# Unlike a pid file this is right after crashes too, and never names another cluster's process.
pids_of() {
  local process name
  for process in /proc/[0-9]*; do
    { read -r name <"$process/comm"; } 2>/dev/null && [ "$name" = "$1" ] || continue
    grep -qE "^$2(/|$)" <<<"$(readlink "$process"/fd/* 2>/dev/null)" && echo "${process#/proc/}"
  done
  return 0
}

runs() { [ -n "$(pids_of "$@")" ]; }

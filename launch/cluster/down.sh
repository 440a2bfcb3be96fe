#!/usr/bin/env bash
# Stops the SLURM that up.sh started, with its jobs, whatever of it is still alive, and removes its files but the logs.
# CLUSTER_ROOT: as in up.sh
set -euo pipefail
# shellcheck source=launch/cluster/common.sh
. "$(dirname "$0")/common.sh"

main() {
  [ -e "$MARK" ] || { say "no cluster in $ROOT"; exit 0; }
  cancel_jobs
  stop daemons_of slurmd slurmstepd
  stop job_processes
  stop daemons_of slurmctld
  stop daemons_of slurmdbd
  stop daemons_of mariadbd
  stop daemons_of munged
  rm -rf "${ROOT:?}"/{etc,run,state,spool,gpu,mysql} "$MARK"
  say "stopped; logs are in $ROOT/log"
}

# Through SLURM, as long as it answers: its daemons then leave nothing behind.
cancel_jobs() {
  timeout 5 sinfo -h >/dev/null 2>&1 || return 0
  timeout 10 squeue -h -o %A | sort -u | xargs -r timeout 10 scancel || true
  attempt 8 no_jobs || true
}

no_jobs() { [ -z "$(timeout 5 squeue -h -t running,completing,suspended)" ]; }

daemons_of() {
  local program
  for program in "$@"; do pids_of "$program" "$ROOT"; done
}

# Processes that a dead slurmd left: jobs of this cluster, not a shell in which SLURM_CONF was exported.
job_processes() {
  local process
  for process in /proc/[0-9]*; do
    if has "$process/environ" "SLURM_CONF=$SLURM_CONF" && has "$process/environ" "SLURM_JOB_ID=[0-9]+"; then
      echo "${process#/proc/}"
    fi
  done
}

has() { grep -qzxE "$2" "$1" 2>/dev/null; }

# stop COMMAND...: end the processes whose pids the command lists; those that stay for 15 s are killed
stop() {
  local pids
  mapfile -t pids < <("$@")
  [ "${#pids[@]}" = 0 ] && return
  kill "${pids[@]}" 2>/dev/null || true
  attempt 15 none_left "$@" || "$@" | xargs -r kill -9 || true
}

none_left() { [ -z "$("$@")" ]; }

main

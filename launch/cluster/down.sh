#!/usr/bin/env bash
# Stops the SLURM that up.sh started, with its jobs, whatever of it is still alive, and removes its files but the logs.
# CLUSTER_ROOT: as in up.sh
set -euo pipefail
# shellcheck source=launch/cluster/common.sh
. "$(dirname "$0")/common.sh"

main() {
  [ -e "$MARK" ] || { say "no cluster in $ROOT"; exit 0; }
  cancel_jobs
  stop 5 daemons_of slurmd
  stop 2 job_processes
  stop 2 daemons_of slurmstepd # which without a slurmctld to report to would not end
  stop 10 daemons_of slurmctld
  stop 10 daemons_of slurmdbd
  stop 20 daemons_of mariadbd
  stop 5 daemons_of munged
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

daemons_of() { pids_of "$1" "$ROOT"; }

# Processes that a dead slurmd left: jobs of this cluster, not a shell in which SLURM_CONF was exported.
job_processes() {
  grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null |
    xargs -r grep -lzxE 'SLURM_JOB_ID=[0-9]+' 2>/dev/null | grep -oE '[0-9]+' || true
}

# stop SECONDS COMMAND...: end the processes whose pids the command lists; those that stay that long are killed
stop() {
  "${@:2}" | xargs -r kill 2>/dev/null || true
  attempt "$1" none_left "${@:2}" || "${@:2}" | xargs -r kill -9 2>/dev/null || true
}

none_left() { [ -z "$("$@")" ]; }

main

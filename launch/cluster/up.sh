#!/usr/bin/env bash
# Starts a real SLURM on this one machine to try the cluster path on: munge, MariaDB and slurmdbd (accounting),
# slurmctld, and several slurmd's with fake GPUs. Root on Debian 12 or newer or Ubuntu 24.04 or newer; no systemd;
# nothing listens beyond 127.0.0.1, and nothing is written outside CLUSTER_ROOT but missing Debian packages.
# A second call starts only what has died. down.sh stops it all.
#
#   launch/cluster/up.sh
#   export SLURM_CONF=/tmp/sae_outliers_slurm/etc/slurm.conf   # now sbatch, squeue and sacct find it
#
# CLUSTER_ROOT   folder of all its files (/tmp/sae_outliers_slurm)
# CLUSTER_NODES  slurmd's (4), each with CLUSTER_CPUS CPUs (2) and CLUSTER_GPUS fake GPUs (2), real ones or not
# CLUSTER_PORT   the first of the TCP ports that it takes: 3 and one a node (16817)
set -euo pipefail
# shellcheck source=launch/cluster/common.sh
. "$(dirname "$0")/common.sh"
NODES=${CLUSTER_NODES:-4} CPUS=${CLUSTER_CPUS:-2} GPUS=${CLUSTER_GPUS:-2} PORT=${CLUSTER_PORT:-16817}
LOG=$ROOT/log MUNGE=$ROOT/run/munge.socket MYSQL=$ROOT/run/mysql.sock
PROGRAMS=(munged munge slurmctld slurmd slurmdbd sbatch mariadbd mariadb mariadb-install-db)
PACKAGES=(munge slurmctld slurmd slurmdbd slurm-client mariadb-server-core mariadb-client-core)

main() {
  make_folder
  install_packages
  write_config
  start_munge
  start_database
  start_accounting
  start_controller
  start_nodes
  say "$NODES nodes with $CPUS CPUs and $GPUS fake GPUs each are up; for this shell: export SLURM_CONF=$SLURM_CONF"
}

make_folder() {
  umask 022
  mkdir -p "$ROOT"
  [ -O "$ROOT" ] || die "$ROOT belongs to somebody else: remove it, or set CLUSTER_ROOT"
  [ -e "$MARK" ] || [ -z "$(ls -A --ignore=log "$ROOT")" ] ||
    die "$ROOT holds other files: remove it, or set CLUSTER_ROOT to a folder of the cluster's own"
  touch "$MARK"
  mkdir -p "$ROOT"/{etc,run,log,state,spool,gpu,mysql}
}

install_packages() {
  local program missing=()
  for program in "${PROGRAMS[@]}"; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [ "${#missing[@]}" = 0 ] && return
  command -v apt-get >/dev/null || die "${missing[*]} are missing, and only Debian and Ubuntu are known: install them"
  say "installing ${PACKAGES[*]}"
  apt_get install || { apt_get update && apt_get install; } || die "apt-get failed: see $LOG/apt.log"
}

# The packages must not start their own daemons, which policy-rc.d forbids them; one that is there stays as it is.
apt_get() {
  local policy=/usr/sbin/policy-rc.d made='' status=0
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=$policy; }
  if [ "$1" = update ]; then set -- update; else set -- install -y --no-install-recommends "${PACKAGES[@]}"; fi
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -q "$@" >>"$LOG/apt.log" 2>&1 || status=$?
  [ -z "$made" ] || rm -f "$made"
  return $status
}

write_config() {
  local n
  for ((n = 1; n <= NODES; n++)); do mkdir -p "$ROOT/spool/node$n"; done
  # slurmd takes only devices for GPUs: character devices like /dev/null, or links to it where mknod is forbidden
  for ((n = 0; n < GPUS; n++)); do
    [ -c "$ROOT/gpu/nvidia$n" ] || mknod -m 666 "$ROOT/gpu/nvidia$n" c 1 3 || ln -sfn /dev/null "$ROOT/gpu/nvidia$n"
  done
  gres_conf >"$ROOT/etc/gres.conf"
  slurmdbd_conf >"$ROOT/etc/slurmdbd.conf"
  chmod 600 "$ROOT/etc/slurmdbd.conf" # or slurmdbd refuses it
  slurm_conf >"$ROOT/etc/slurm.conf.new"
  if runs slurmctld "$LOG" && ! cmp -s "$ROOT/etc/slurm.conf.new" "$SLURM_CONF"; then
    die "a cluster with other CLUSTER_ settings runs in $ROOT: stop it first with down.sh"
  fi
  mv "$ROOT/etc/slurm.conf.new" "$SLURM_CONF"
}

# cred_expire (seconds) is also how long a requeued job waits before it starts again; the default is two minutes.
# linuxproc and no TaskPlugin: containers seldom let anyone write cgroups, so nothing is confined.
# preempt_send_user_signal: a preempted job gets its USR2 and GraceTime seconds to write a checkpoint.
# ReturnToService=2: a node whose slurmd was killed and comes back takes jobs again.
slurm_conf() {
  cat <<CONF
ClusterName=one_host
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$MUNGE,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$MUNGE
AccountingStorageTRES=gres/gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MaxArraySize=1001
ReturnToService=2
SlurmdTimeout=10
KillWait=3
NodeName=DEFAULT CPUs=$CPUS RealMemory=65536 Gres=gpu:$GPUS
$(for ((n = 1; n <= NODES; n++)); do node_line "$n"; done)
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=10 GraceTime=10
PartitionName=urgent Nodes=ALL State=UP PriorityTier=20 PreemptMode=OFF
CONF
}

node_line() { echo "NodeName=node$1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 2 + $1))"; }

gres_conf() {
  echo "AutoDetect=off"
  [ "$GPUS" = 0 ] || echo "NodeName=node[1-$NODES] Name=gpu File=$ROOT/gpu/nvidia[0-$((GPUS - 1))]"
}

slurmdbd_conf() {
  cat <<CONF
AuthInfo=$MUNGE
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$ROOT/run/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
}

# started PROGRAM SECONDS COMMAND...: wait until a command that needs the program succeeds
started() {
  attempt "${@:2}" || die "$1 did not start in $2 s (${3##*/}: ${said:-nothing}): see $LOG/$1*.log"
}

# A daemon keeps what it inherits open, and with it a caller's lock or pipe: it gets none of those.
daemon() (
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    [ "$fd" -le 2 ] || exec {fd}>&-
  done
  exec "$@"
)

# A munged of its own, with a key of its own: one that the machine may have is left alone.
start_munge() {
  local key=$ROOT/etc/munge.key
  runs munged "$LOG" && return
  [ -s "$key" ] || (umask 077 && head -c 128 /dev/urandom >"$key")
  daemon munged --force --key-file="$key" --socket="$MUNGE" --pid-file="$ROOT/run/munged.pid" \
    --log-file="$LOG/munged.log" --seed-file="$ROOT/run/munged.seed" || true
  started munged 10 munge --no-input --socket="$MUNGE"
}

# It listens on a socket that only root may open, and on no port.
start_database() {
  local sql=(mariadb --no-defaults -u root -S "$MYSQL" -e)
  if ! runs mariadbd "$LOG"; then
    [ -d "$ROOT/mysql/mysql" ] ||
      mariadb-install-db --no-defaults --user=root --datadir="$ROOT/mysql" --skip-test-db \
        --auth-root-authentication-method=socket --innodb-log-file-size=16M >"$LOG/mariadb-install-db.log" 2>&1 ||
      die "mariadb-install-db failed: see $LOG/mariadb-install-db.log"
    daemon setsid mariadbd --no-defaults --user=root --datadir="$ROOT/mysql" --socket="$MYSQL" --skip-networking \
      --pid-file="$ROOT/run/mariadbd.pid" --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 \
      --performance-schema=off </dev/null >>"$LOG/mariadbd.log" 2>&1 &
    started mariadbd 30 "${sql[@]}" "select 1"
  fi
  "${sql[@]}" "create database if not exists slurm_acct_db"
}

start_accounting() {
  runs slurmdbd "$LOG" || MYSQL_UNIX_PORT=$MYSQL daemon slurmdbd || true
  started slurmdbd 30 sacctmgr -n show cluster
  [ "$(sacctmgr -nP list cluster format=cluster)" = one_host ] ||
    sacctmgr -i add cluster one_host >/dev/null
}

start_controller() {
  runs slurmctld "$LOG" || daemon slurmctld || true
  started slurmctld 30 sinfo -h
}

start_nodes() {
  local n
  for ((n = 1; n <= NODES; n++)); do
    runs slurmd "$LOG/slurmd-node$n.log" || daemon slurmd -N "node$n" || die "slurmd failed: see $LOG/slurmd-node$n.log"
  done
  started slurmd 40 nodes_ready
}

# A killed or drained node is asked to take jobs again.
nodes_ready() {
  local node state ready=0
  while read -r node state; do
    case $state in
      idle | mix | alloc | comp) ready=$((ready + 1)) ;;
      down* | drain* | drng* | fail*) scontrol update nodename="$node" state=resume || true ;;
    esac
  done < <(sinfo -h -N -p main -o '%N %t')
  [ "$ready" -eq "$NODES" ]
}

main

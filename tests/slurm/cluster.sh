#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, in one folder:
#   bash tests/slurm/cluster.sh install       slurm-wlm and munge, by apt
#   bash tests/slurm/cluster.sh start DIR     daemons; DIR/slurm.conf is theirs
#   bash tests/slurm/cluster.sh stop DIR
# Commands of SLURM find it by SLURM_CONF=DIR/slurm.conf. The partition high
# preempts what runs in low, which has GRACE seconds to save.
set -euo pipefail

die() {
  printf 'cluster: %s\n' "$1" >&2
  exit 1
}

is_installed() {
  local tool
  for tool in munged slurmctld slurmd sbatch srun scontrol; do
    PATH=$PATH:/usr/sbin:/sbin type "$tool" >/dev/null 2>&1 || return 1
  done
}

install() {
  local sudo=()
  if is_installed; then return; fi
  type apt-get >/dev/null 2>&1 ||
    die "there is no apt-get here; install SLURM and munge by hand."
  ((EUID == 0)) || sudo=(sudo)
  ${sudo[@]+"${sudo[@]}"} apt-get update -q
  DEBIAN_FRONTEND=noninteractive ${sudo[@]+"${sudo[@]}"} apt-get install -q -y \
    --no-install-recommends slurm-wlm munge
  is_installed || die "slurm-wlm and munge were installed and are incomplete."
}

# Prints two free ports.
free_ports() {
  python3 -c 'import socket
holds = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[hold.getsockname()[1] for hold in holds])'
}

start() {
  local dir=$1 ports user
  export PATH=$PATH:/usr/sbin:/sbin
  user=$(id -un)
  is_installed ||
    die "SLURM is not installed; bash tests/slurm/cluster.sh install does it."
  trap 'stop "$dir"' ERR
  read -r -a ports <<<"$(free_ports)"
  mkdir -p "$dir"/{munge,state,spool}
  chmod 700 "$dir/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
  # A job's number decides the port at which its processes meet: another
  # cluster on this machine would have begun with the same ones.
  # Requeued jobs start when the old credential has expired: 120 s by default.
  cat >"$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=localhost
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
FirstJobId=$((RANDOM % 4000 + 1))
KillWait=${KILL_WAIT:-30}
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=${GRACE:-120} MaxTime=INFINITE
PartitionName=high Nodes=localhost PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
CONF
  set -E
  munged --socket="$dir/munge/socket" --key-file="$dir/munge/key" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munge/log" \
    --seed-file="$dir/munge/seed" --force
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  slurmd -c
  for _ in {1..60}; do
    if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then return; fi
    sleep 0.5
  done
  tail -n 20 "$dir"/slurm*.log >&2
  stop "$dir"
  die "the node did not come up; the logs are above."
}

stop() {
  local dir=$1 name pid
  export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$dir/slurm.conf
  if [[ -r $SLURM_CONF ]]; then
    timeout 10 scancel --quiet --user="$(id -un)" --signal=KILL 2>/dev/null || true
    timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null || true
    for _ in {1..20}; do
      if [[ -z $(timeout 5 squeue --noheader 2>/dev/null) ]]; then break; fi
      sleep 0.5
    done
  fi
  for name in slurmd slurmctld munged; do
    pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in {1..50}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

case ${1:-}:$# in
  install:1) install ;;
  start:2 | stop:2) "$1" "$(realpath -m -- "$2")" ;;
  *) die "say install, start DIR or stop DIR." ;;
esac

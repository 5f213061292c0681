#!/usr/bin/env bash
# Starts and stops a Slurm cluster of this machine alone, without accounting:
#
#     tests/slurm.sh start FOLDER     then SLURM_CONF=FOLDER/slurm.conf names it to srun, sbatch, squeue and scancel
#     tests/slurm.sh stop FOLDER
#
# It needs Debian's slurm-wlm and munge, and root. FOLDER receives all of its files.
set -euo pipefail
folder=$(realpath -m "$2")

stop() {
    for daemon in slurmd slurmctld munged; do
        [ ! -s "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true
        rm -f "$folder/$daemon.pid"
    done
}

start() {
    local host port
    host=$(hostname -s)
    port=$((20000 + $$ % 20000))
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder" "$folder/state" "$folder/spool"
    (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2> "$folder/munged.err"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format=%T 2> /dev/null)" != idle ] || return 0
        sleep 0.2
    done
    cat "$folder/slurmctld.log" "$folder/slurmd.log" >&2
    return 1
}

"$1"

#!/usr/bin/env bash
# A real Slurm of one node on this machine, for tests: no systemd, no accounting, own ports and folders.
#
#   one_node.sh start FOLDER   writes its files below FOLDER, and a link to them at /etc/slurm/slurm.conf
#   one_node.sh stop FOLDER
#
# Needs root, and Debian's slurm-wlm and munge: apt-get install slurm-wlm munge
set -euo pipefail
action=$1 folder=$(realpath -m "$2")
# Snakemake's jobs drop SLURM_CONF from their environment, so the configuration has to lie where Slurm looks for it.
conf=/etc/slurm/slurm.conf

start() {
    if [ -e "$conf" ]; then echo "$conf exists: this machine has a Slurm already" >&2; exit 1; fi
    mkdir -p "$folder"/{state,spool,munge}
    local port=$((20000 + RANDOM % 20000)) host
    host=$(hostname -s)
    # Munge insists on folders that only its user can write; /tmp above them is nobody's own.
    head -c 1024 /dev/urandom > "$folder/munge/key"
    chmod 400 "$folder/munge/key"
    chown -R munge:munge "$folder/munge"
    chmod 711 "$folder/munge"
    runuser -u munge -- munged --force --socket "$folder/munge/socket" --key-file "$folder/munge/key" \
        --pid-file "$folder/munge/pid" --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
SchedulerParameters=sched_interval=2
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem/ {print $2}') State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    mkdir -p "$(dirname "$conf")"
    ln -sf "$folder/slurm.conf" "$conf"
    slurmctld
    slurmd
    for _ in $(seq 60); do
        sinfo --noheader --format %t 2> /dev/null | grep -q idle && exit 0
        sleep 1
    done
    echo "no idle node after a minute; see $folder/*.log" >&2
    exit 1
}

stop() {
    for name in slurmd.pid slurmctld.pid munge/pid; do
        if [ -f "$folder/$name" ]; then kill "$(cat "$folder/$name")" || true; fi
    done
    if [ "$(readlink "$conf")" = "$folder/slurm.conf" ]; then rm "$conf"; fi
}

"$action"

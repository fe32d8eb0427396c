#!/usr/bin/env bash
# Start the two-node cluster in a folder: `export SLURM_CONF=$(docker/slurm/start.sh /tmp/slurm-ci)`.
# Needs root and: apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
root=${1:?a folder that is not there yet}
port=${2:-36817}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$root"/state "$root"/gpu "$root"/spool-{n,nowhere}{1,2}
chmod 755 "$root"
touch "$root"/gpu/nvidia{0..7}
sed -e "s|@HOST@|$(hostname -s)|g" -e "s|@ROOT@|$root|g" -e "s|@PORT0@|$port|g" \
    -e "s|@PORT1@|$((port + 1))|g" -e "s|@PORT2@|$((port + 2))|g" \
    -e "s|@PORT3@|$((port + 3))|g" -e "s|@PORT4@|$((port + 4))|g" \
    "$here/slurm.conf.in" >"$root/slurm.conf"
echo "NodeName=n[1-2] Name=gpu File=$root/gpu/nvidia[0-7]" >"$root/gres.conf"
# versions before 23.02 know no such plugin, later ones cannot do without it
version=$(slurmd -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')
[ "$version" -lt 23 ] || echo "CgroupPlugin=disabled" >"$root/cgroup.conf"
# nodes find each other by name
for node in n1 n2; do
    getent hosts "$node" >/dev/null || echo "127.0.0.1 $node" >>/etc/hosts
done
# one munged serves every cluster of a machine
if ! munge -n >/dev/null 2>&1; then
    install -d -o munge -g munge /run/munge /var/lib/munge /var/log/munge
    runuser -u munge -- munged
fi
export SLURM_CONF=$root/slurm.conf
slurmctld -c >&2
for node in n1 n2 nowhere1 nowhere2; do
    slurmd -N "$node" >&2
done
for _ in $(seq 100); do
    if [ "$(sinfo --noheader --partition=main,nowhere --states=idle --Node --format=%N 2>/dev/null | wc -l)" = 4 ]; then
        echo "$SLURM_CONF"
        exit
    fi
    sleep 0.2
done
echo "the nodes did not come up; see $root/slurmctld.log" >&2
exit 1

#!/usr/bin/env bash
# Stop the cluster that start.sh has started in a folder; munged stays.
set -euo pipefail
root=${1:?the folder}
for name in slurmd-{n,nowhere}{1,2} slurmctld; do
    if [ -f "$root/$name.pid" ]; then
        kill "$(cat "$root/$name.pid")" 2>/dev/null || true
    fi
done

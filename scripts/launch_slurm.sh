#!/usr/bin/env bash
# Usage: scripts/launch_slurm.sh CONFIG CARDS [key=value...]
# Submits CONFIG on CARDS cards to Slurm; launch.slurm.* says to which partition; see docs/cluster.md.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
config=$1 cards=$2
shift 2
said=$(mindmoe launch "$config" --cards "$cards" --slurm "$@")
printf '%s\n' "$said"
job=$(printf '%s\n' "$said" | sed -n "s/^start it with: sbatch //p" | xargs)
exec sbatch "$job"

#!/usr/bin/env bash
# Usage: scripts/launch_k8s.sh CONFIG CARDS [key=value...]
# Creates a Volcano job of CONFIG on CARDS cards; launch.kubernetes.* says where; see docs/cluster.md.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
config=$1 cards=$2
shift 2
said=$(mindmoe launch "$config" --cards "$cards" --k8s "$@")
printf '%s\n' "$said"
job=$(printf '%s\n' "$said" | sed -n "s/^start it with: kubectl create -f //p" | xargs)
exec kubectl create -f "$job"

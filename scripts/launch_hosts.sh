#!/usr/bin/env bash
# Usage: scripts/launch_hosts.sh CONFIG CARDS HOSTS [key=value...]
# Trains CONFIG on CARDS cards of the nodes in the file HOSTS, started over ssh; see docs/cluster.md.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
config=$1 cards=$2 hosts=$3
shift 3
said=$(mindmoe launch "$config" --cards "$cards" --nodes "$hosts" "$@")
printf '%s\n' "$said"
start=$(printf '%s\n' "$said" | sed -n "s/^start it with: bash //p" | xargs)
exec bash "$start"

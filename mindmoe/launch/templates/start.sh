#!/usr/bin/env bash
# Starts every node of {{ name }} and waits; the exit code is that of node 0.
# REMOTE_SHELL is put before each host: by default ssh, which must work without a password. Like ssh it may hand its
# words to a shell on the other side, and paths that such a shell would change are quoted for it.
set -euo pipefail
remote=${REMOTE_SHELL:-ssh -o BatchMode=yes}
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM HUP
rm -f {{ logs }}/node_*.out  # never write through a link
{% for host in hosts %}
# shellcheck disable=SC2086  # REMOTE_SHELL may be several words
{% if loop.first %}
$remote {{ host }} bash {{ remote_script }} 0 &
{% else %}
$remote {{ host }} bash {{ remote_script }} {{ loop.index0 }} > {{ logs }}/node_{{ loop.index0 }}.out 2>&1 &
{% endif %}
pids+=($!)
{% endfor %}
code=0
wait "${pids[0]}" || code=$?
while kill -0 "${pids[0]}" 2>/dev/null; do  # a signal ended the wait: the ranks are saving
    code=0
    wait "${pids[0]}" || code=$?
done
wait
exit "$code"

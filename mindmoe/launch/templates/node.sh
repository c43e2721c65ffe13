#!/usr/bin/env bash
# One node of {{ name }}: {{ cards }} cards, {{ cards_per_node }} on each of {{ needed }} nodes.
# Usage: node.sh INDEX [--bare]
# INDEX counts the nodes from 0. Node 0 leads: it starts the ranks of all nodes, watches them, and starts them again
# from the newest checkpoint when one fails. --bare runs only the msrun line, with nobody to watch it.
set -euo pipefail
index=${1:?usage: node.sh INDEX [--bare]}
cd {{ working_folder }}

export PATH={{ python_folder }}:$PATH
{% if python_path %}
export PYTHONPATH={{ python_path }}
{% endif %}
{% if ascend %}
# CANN, where it is installed in its usual place
if [ -r /usr/local/Ascend/ascend-toolkit/set_env.sh ]; then
    set +u  # it reads variables that may not be set
    . /usr/local/Ascend/ascend-toolkit/set_env.sh
    set -u
fi
{% endif %}
# every rank has hundreds of threads
ulimit -u unlimited 2>/dev/null || true

{% for variable in variables %}
# {{ variable.reason }}
export {{ variable.name }}={{ variable.value }}
{% endfor %}
# left by another job or a rehearsal, they would make a rank take a wrong place or only simulate
unset MS_SIMULATION_LEVEL MS_ROLE MS_WORKER_NUM MS_NODE_ID RANK_ID RANK_SIZE RANK_TABLE_FILE

if [ "${2:-}" = --bare ]; then
    threads=$(($(nproc) / {{ cards_per_node }}))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    exec {{ msrun }}
fi
exec python -m mindmoe node {{ launch_folder }} --index "$index"

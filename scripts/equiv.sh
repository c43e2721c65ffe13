#!/usr/bin/env bash
# Usage: scripts/equiv.sh VENV
# Compares every layout of docs/equivalence.md with one process: 10 steps, fp32, real tokens. Takes half an hour on
# two cores. The traces and equiv.json go to runs/equiv/<number of ranks>, the table to docs/equivalence.md.
set -euo pipefail
cd "$(dirname "$0")/.."
mindmoe="$1/bin/mindmoe"

[ -f data/quickstart/dataset.json ] || "$mindmoe" data prepare python-stdlib --out data/quickstart

run() {
    local ranks=$1; shift
    "$mindmoe" equiv configs/equiv.yaml moe.dispatch.capacity_chunk=8 "${words[@]}" \
        train.steps="${STEPS:-10}" --out "runs/equiv/$ranks" --layouts "$@" || failed=1
}

failed=0
words=()
run 2 dp2 tp2 pp2 cp2,ring cp2,ulysses dp2,ep2 dp2,ep2,all_gather dp2,ep2,capacity dp2,zero1 dp2,zero2 dp2,zero3 \
    pp2,gpipe pp2,interleaved,chunks2 pp2,zb_h1 pp2,split1+3 tp2,ep2,etp1 cp2,ep2 dp2,full dp2,selective \
    dp2,full,recompute_layers2
run 4 dp2,tp2 dp2,pp2 dp2,cp2 tp2,pp2 tp2,cp2 pp2,cp2 dp4,ep4 dp2,tp2,ep2 dp2,pp2,ep2 dp2,cp2,ep4 \
    tp2,cp2,ep2 tp2,pp2,ep2,etp1 dp4,ep4,two_hop,node_size2 dp4,ep2,zero3 dp2,tp2,zero2 dp2,pp2,zero1 dp2,cp2,zero3 \
    pp2,cp2,split3+1
run 8 dp2,tp2,pp2,ep2 tp2,pp2,cp2,ep2 dp2,pp2,cp2,ep4 tp8
words=(train.micro_batch_size=3 train.global_batch_size=6 model.num_attention_heads=12 model.num_key_value_heads=6
    model.vocab_size=4098 moe.num_experts=12 train.seq_length=72)
run 3 dp3 tp3 pp3 cp3 dp3,ep3
"$1/bin/python" scripts/equiv_table.py runs/equiv docs/equivalence.md
exit $failed

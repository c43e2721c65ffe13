#!/usr/bin/env bash
# Usage: scripts/quickstart.sh VENV
# From the Python standard library to a trained mixture-of-experts model, a report and a sample. Every stage that is
# done is skipped or taken up where it stopped when this runs again.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stage="" started=$SECONDS

stop_notice() {
    local code=$?
    [ "$code" -eq 0 ] || printf '\nquickstart: stopped (exit %s) in stage "%s".\n%s\n' "$code" "$stage" \
        "Run make quickstart again: what is finished is kept, and training continues from its newest checkpoint." >&2
}
trap stop_notice EXIT

heading() {
    stage=$1
    printf '\n==== %s   [%d s]\n' "$stage" $((SECONDS - started))
}

mindmoe() {
    local word
    printf '$ mindmoe'
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./=-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$venv/bin/python" -m mindmoe "$@"
}

heading "1/5 This machine"
mindmoe doctor

heading "2/5 Text to tokens: the Python standard library, a SentencePiece tokenizer trained on it, .bin/.idx files"
mindmoe data prepare python-stdlib --out data/quickstart vocab_size=4096

heading "3/5 Pretraining with 2 processes (configs/quickstart.yaml)"
mindmoe launch configs/quickstart.yaml --cards 2

heading "4/5 The story of the run in one HTML file"
mindmoe report runs/quickstart

heading "5/5 A sample"
mindmoe generate runs/quickstart --prompt "def "

heading "done"
cat <<EOF
Open runs/quickstart/report.html in a browser. To try next:
  source $venv/bin/activate
  mindmoe launch configs/quickstart.yaml --cards 2 train.steps=600 optim.on_jump=accept   # resume, train on to step 600
  mindmoe generate runs/quickstart --prompt "class " --max-new-tokens 200   # generate
  mindmoe data prepare path/to/text --out data/mine &&                      # your own text
    mindmoe launch configs/quickstart.yaml --cards 2 name=mine data.sources=data/mine
EOF

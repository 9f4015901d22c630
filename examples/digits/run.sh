#!/bin/sh
# English digits, then the digits of another language: from scratch and with two warm starts, over three seeds.
#   sh examples/digits/run.sh                                            voices of eSpeak NG, English and Ukrainian
#   sh examples/digits/run.sh FSDD_FOLDER ARABIC_FOLDER                  recordings of people, English and Arabic
#   sh examples/digits/run.sh FSDD_FOLDER ARABIC_FOLDER CHECKPOINT       the parent is a checkpoint of Coqui STT
# It needs warmstart[train,speech], and espeakng-loader for voices of eSpeak NG. Run it where examples/ is.
set -e
here=examples/digits
say() { printf '\n== %s\n' "$*"; }

say "data"
if [ $# -ge 2 ]; then python $here/prepare.py --english "$1" --arabic "$2"; else python $here/prepare.py; fi
parent=$here/runs/parent
model='model={}'
if [ -n "$3" ]; then
  parent=$3
  model='model={dropout_1: 0.05, dropout_2: 0.05, dropout_3: 0.05, dropout_5: 0.05}'
else
  say "1. the parent, English digits, from scratch"
  warmstart train $here/parent.yaml
fi
say "2. the plan of the child"
warmstart plan $here/transfer.yaml "start.source=$parent" "$model"
say "3. the child, nine times: from scratch and with both warm starts, the same data and budget, three seeds"
for seed in 1 2 3; do
  warmstart train $here/scratch.yaml "seed=$seed" "run=$here/runs/scratch-$seed"
  warmstart train $here/transfer.yaml "start.source=$parent" "$model" "seed=$seed" "run=$here/runs/transfer-$seed"
  warmstart train $here/rows.yaml "start.source=$parent" "$model" "seed=$seed" "run=$here/runs/rows-$seed"
done
say "4. what the warm start gained"
python $here/report.py
say "5. some of what it writes down"
warmstart evaluate $here/runs/transfer-1 --split validation --report-count 2

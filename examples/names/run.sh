#!/bin/sh
# The main job: a parent, the plan of a child, the child with and without it, the comparison, the export.
set -e
here=examples/names
say() { printf '\n== %s\n' "$*"; }

say "data: names of places, languages and currencies, from pycountry"
python $here/prepare.py
say "1. the parent, English to Ukrainian, from scratch"
warmstart train $here/parent.yaml
say "2. the plan of the child, English to Belarusian"
warmstart plan $here/transfer.yaml
say "3. the child, twice: same data, budget and seed"
warmstart train $here/scratch.yaml
warmstart train $here/transfer.yaml
say "4. what the warm start gained, on validation names"
warmstart compare scratch=$here/runs/scratch transfer=$here/runs/transfer \
  --metric validation/chrf --metric validation/exact_match --metric validation/cer --metric validation/loss \
  --curves $here/runs/curves.png
say "   and on held-out test names"
scratch=$(warmstart evaluate $here/runs/scratch)
transfer=$(warmstart evaluate $here/runs/transfer)
printf 'scratch   %s\ntransfer  %s\n' "$scratch" "$transfer"
say "5. export to CTranslate2, float32 and int8"
warmstart convert $here/runs/transfer $here/runs/ct2-float32 --to ctranslate2 --force
warmstart convert $here/runs/transfer $here/runs/ct2-int8 --to ctranslate2 --quantize int8 --force
python $here/check_export.py
say "a few names, by CTranslate2"
printf '%s\n' 'New Zealand' 'Old Norse' 'Norwegian Krone' | warmstart translate $here/runs/ct2-float32
say "done"
cat <<END
happened the same child was trained twice: from scratch, and from the parent's encoder and shared letters
gained   on test names, from scratch: $scratch
         with the warm start:         $transfer
models   $here/runs/{parent,scratch,transfer}/model
curves   $here/runs/curves.png
exports  $here/runs/ct2-float32, $here/runs/ct2-int8
next     warmstart translate $here/runs/transfer/model --beam-size 4 --scores
END

#!/usr/bin/env bash
# mcunet-5fps on sign_digits, 128 px, batch 8, 512,000 B of training memory, 4 epochs, 3 seeds: prints sign_digits.txt.
# Usage: reports/sign_digits.sh [FOLDER] > reports/sign_digits.txt   (needs the data files, see MEDYATE_ASSETS)
set -euo pipefail
export OMP_NUM_THREADS=1 NO_COLOR=1
assets=${MEDYATE_ASSETS:-$(cd "$(dirname "$0")/../../shared/assets" && pwd)}
folder=${1:-$(mktemp -d)}
for seed in 0 1 2; do
  out="$folder/$seed"
  medyate rank mcunet-5fps --data "tar:$assets/datasets/sign_digits.tar" --num-classes 10 --seed "$seed" \
    -o "$out/importance.safetensors" > /dev/null 2>&1
  medyate plan mcunet-5fps --num-classes 10 --seed "$seed" --budget 512kB \
    --importance "$out/importance.safetensors" -o "$out/plan.json" > /dev/null 2>&1
  echo "seed $seed"
  medyate verify "$out/plan.json"
  medyate train "$out/plan.json" --data "tar:$assets/datasets/sign_digits.tar" --epochs 4 --seed "$seed" \
    --out "$out/run" 2> /dev/null
  echo
done

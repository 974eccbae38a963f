#!/usr/bin/env bash
# What each budget buys: mcunet-5fps on sign_digits, batch 8, 12 budgets from 64 kB to 16 MB: writes frontier.{json,png,html}.
# Usage: reports/frontier.sh > reports/frontier.txt   (needs the data files, see MEDYATE_ASSETS)
set -euo pipefail
export OMP_NUM_THREADS=1 NO_COLOR=1
here=$(cd "$(dirname "$0")" && pwd)
assets=${MEDYATE_ASSETS:-$(cd "$here/../../shared/assets" && pwd)}
folder=$(mktemp -d)
medyate rank mcunet-5fps --data "tar:$assets/datasets/sign_digits.tar" --num-classes 10 \
  -o "$folder/importance.safetensors" > /dev/null 2>&1
medyate plan mcunet-5fps --num-classes 10 --budgets 64kB:16MB:12 --importance "$folder/importance.safetensors" \
  -o "$here/frontier.json" --force 2> /dev/null
for kind in png html; do
  medyate plan mcunet-5fps --num-classes 10 --budgets 64kB:16MB:12 --importance "$folder/importance.safetensors" \
    -o "$here/frontier.$kind" --force > /dev/null 2>&1
done

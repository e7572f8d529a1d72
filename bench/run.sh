#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh [PROGRAM...]: run the benchmarks and write what they print to results/, one file per program and day.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bench/results
for p in "${@:-packet/run churn churn/restart scale}"; do for b in $p; do
  out=bench/results/$(date +%F)-${b//\//-}.txt
  { echo "go run ./bench/$b"; echo "$(nproc) cores, Linux $(uname -r), $(git describe --always --dirty)"; echo; } >"$out"
  go run "./bench/$b" 2>&1 | tee -a "$out"
done; done

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# e2e.sh FOCUS [SKIP]: run the upstream Kubernetes e2e tests whose names match FOCUS on the running cluster.
#   e2e.sh '\[sig-network\].*\[Conformance\]' '\[Serial\]'
set -euo pipefail
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run
out=${E2E_OUT:-$W/e2e}; mkdir -p "$out"
exec nsenter --net=/var/run/netns/ctl "$W/bin/e2e.test" --kubeconfig="$D/kubeconfig" --kubectl-path="$W/bin/kubectl" \
  --provider=skeleton --ginkgo.no-color --ginkgo.focus="$1" --ginkgo.skip="${2:-\[Disruptive\]}" --report-dir="$out"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fairlead.sh [VERSION]: build Fairlead's image from this tree without an engine, load it on every node of up.sh and roll it out as its
# DaemonSet. Run again with another VERSION to upgrade or downgrade.
set -euo pipefail
V=${1:-dev}
HERE=$(cd "$(dirname "$0")" && pwd); TOP=$(cd "$HERE/../.." && pwd)
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run; B=$W/bin
k() { ip netns exec ctl "$B/kubectl" --kubeconfig="$D/kubeconfig" "$@"; }

make -s -C "$TOP" image IMAGE="$D/fairlead-$V.tar" TAG="fairlead.local/fairlead:$V" VERSION="$V"
for s in "$D"/node*/c.sock; do "$B/ctr" -a "$s" -n k8s.io image import "$D/fairlead-$V.tar" >/dev/null; done

rm -rf "$D/kustomize"; mkdir -p "$D/kustomize"
cp -r "$TOP/daemonset/base" "$D/kustomize/base"
cat >"$D/kustomize/base/config.yaml" <<C
api-server: [10.88.0.1:6443]
service-cidr: [10.96.0.0/16, "fd00:10:96::/112"]
cluster-cidr: [10.244.0.0/16, "fd00:10:244::/56"]
C
sed -e "s#@DIR@#$D#g" -e "s#@CGROUP@#$(findmnt -t cgroup2 -n -o TARGET | head -1)#g" -e "s#@VERSION@#$V#g" "$HERE/kustomization.yaml" >"$D/kustomize/kustomization.yaml"
# The API server calls webhooks and proxies to pods: it is no node, so it gets plain routes.
for n in $(k get nodes -o name | cut -d/ -f2); do
  read -r C4 C6 < <(k get node "$n" -o jsonpath='{.spec.podCIDRs[0]} {.spec.podCIDRs[1]}{"\n"}')
  read -r A4 A6 < <(k get node "$n" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}{"\n"}')
  ip -n ctl route replace "$C4" via "$A4"; ip -n ctl -6 route replace "$C6" via "$A6"
done
k apply -k "$D/kustomize" >/dev/null
k -n kube-system rollout status daemonset/fairlead --timeout=120s
k wait --for=condition=Ready node --all --timeout=60s

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ref.sh [nftables|iptables] [NODES]: the reference network, for comparison: the ptp, host-local and portmap
# plugins, static routes between the nodes, and kube-proxy in the given mode.
set -euo pipefail
MODE=${1:-nftables}; N=${2:-2}
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run; B=$W/bin
export KUBECONFIG=$D/kubeconfig
k() { ip netns exec ctl "$B/kubectl" "$@"; }
for i in $(seq "$N"); do
  read -r C4 C6 < <(k get node "node$i" -o jsonpath='{.spec.podCIDRs[0]} {.spec.podCIDRs[1]}{"\n"}')
  cp "$B"/cni/* "$D/node$i/cni/bin/"
  cat >"$D/node$i/cni/net.d/10-ref.conflist" <<C
{"cniVersion":"1.0.0","name":"ref","plugins":[
 {"type":"ptp","mtu":1500,"ipam":{"type":"host-local","dataDir":"$D/node$i/ipam","ranges":[[{"subnet":"$C4"}],[{"subnet":"$C6"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
C
  for h in ctl $(seq -f 'node%g' "$N"); do
    [ "$h" = "node$i" ] && continue
    ip -n "$h" route replace "$C4" via "10.88.0.$((10 + i))"; ip -n "$h" -6 route replace "$C6" via "fd00:10:88::$((10 + i))"
  done
  cat >"$D/node$i/proxy.yaml" <<C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $MODE
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
hostnameOverride: node$i
clientConnection: {kubeconfig: $D/kubeconfig}
conntrack: {maxPerCore: 0}
C
  setsid nohup nsenter --net="/var/run/netns/node$i" "$B/kube-proxy" --config "$D/node$i/proxy.yaml" >"$D/log/proxy-node$i.log" 2>&1 & echo $! >"$D/proxy-node$i.pid"
done

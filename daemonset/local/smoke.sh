#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# smoke.sh: on the running cluster of `make cluster`: nodes Ready without kube-proxy, pods on both nodes, DNS and a ClusterIP through CoreDNS,
# an upgrade and a downgrade of the agent under traffic without one failed request.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run; B=$W/bin
k() { ip netns exec ctl "$B/kubectl" --kubeconfig="$D/kubeconfig" "$@"; }
passed=0
ok() { passed=$((passed + 1)); echo "ok $1"; }
die() { echo "FAIL $1" >&2; k get pods -A -o wide >&2 || true; k -n kube-system logs daemonset/fairlead --tail=40 >&2 || true; echo "$passed passed, 1 failed"; exit 1; }

k wait --for=condition=Ready node --all --timeout=60s >/dev/null || die "nodes are not Ready"
[ "$(k get nodes --no-headers | wc -l)" -ge 2 ] || die "fewer than two nodes"
ok "two nodes are Ready"
for n in $(k get nodes -o name | cut -d/ -f2); do
  rules=$(nsenter --net="/var/run/netns/$n" nft list ruleset 2>/dev/null)
  if grep -qE 'KUBE-(SERVICES|SVC-|NODEPORTS)|table [a-z0-9]+ kube-proxy' <<<"$rules"; then die "$n has rules of kube-proxy"; fi # the kubelet has chains KUBE-* of its own
done
ok "no kube-proxy"

k apply -f "$HERE/smoke.yaml" >/dev/null
k rollout status deployment/echo --timeout=90s >/dev/null || die "echo did not start"
k wait --for=condition=Ready pod/client-node1 pod/client-node2 --timeout=60s >/dev/null || die "clients did not start"
k -n kube-system rollout status deployment/coredns --timeout=90s >/dev/null || die "CoreDNS did not start"
[ "$(k get pods -l app=echo -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l)" = 2 ] || die "echo is not on both nodes"
ok "pods on both nodes"
for c in client-node1 client-node2; do
  for family in 4 6; do
    for ip in $(k get pods -l app=echo -o jsonpath='{range .items[*]}{range .status.podIPs[*]}{.ip}{"\n"}{end}{end}'); do
      case $ip in *:*) [ $family = 6 ] || continue; ip="[$ip]" ;; *) [ $family = 4 ] || continue ;; esac
      k exec "$c" -c client -- curl -gsS -m 5 "http://$ip:8080/hostname" >/dev/null || die "$c to pod $ip"
    done
    k exec "$c" -c client -- curl "-$family" -sS -m 5 --retry 5 --retry-all-errors "http://echo.default.svc.cluster.local/hostname" >/dev/null || die "$c to echo by name over IPv$family"
  done
  ok "$c reaches every pod, and the Service by name, over both families"
  seen=$(for _ in $(seq 40); do k exec "$c" -c client -- curl -sS -m 5 "http://echo/hostname"; echo; done | sort -u | grep -c echo)
  [ "$seen" = 2 ] || die "$c saw $seen of 2 backends in 40 requests"
  ok "$c sees all backends"
done
for n in node1 node2; do
  ip=$(k get service echo -o jsonpath='{.spec.clusterIP}')
  out=$(nsenter --net="/var/run/netns/$n" sh -c "echo \$\$ >$(findmnt -t cgroup2 -n -o TARGET | head -1)/$n/cgroup.procs; curl -sS -m 5 http://$ip/hostname") || die "$n to the ClusterIP"
  [ -n "$out" ] || die "$n got an empty answer"
done
ok "nodes reach the ClusterIP"

nodeport=$(k get service echo -o jsonpath='{.spec.ports[0].nodePort}')
for ip in $(k get nodes -o jsonpath='{range .items[*]}{.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}'); do
  case $ip in *:*) url="http://[$ip]:$nodeport/hostname" ;; *) url="http://$ip:$nodeport/hostname" ;; esac
  seen=$(for _ in $(seq 20); do ip netns exec ctl curl -gsS -m 5 "$url" || true; echo; done | sort -u | grep -c echo)
  [ "$seen" = 2 ] || die "outside saw $seen of 2 backends at $url"
  k exec client-node1 -c client -- curl -gsS -m 5 "$url" >/dev/null || die "client-node1 to $url"
done
ok "NodePort on every node's address, from outside and from a pod, over both families"
for local in 127.0.0.1 '[::1]'; do
  nsenter --net=/var/run/netns/node2 sh -c "echo \$\$ >$(findmnt -t cgroup2 -n -o TARGET | head -1)/node2/cgroup.procs; curl -gsS -m 5 http://$local:$nodeport/hostname" >/dev/null || die "node2 to $local:$nodeport"
done
ok "NodePort on loopback, over both families"
ip=$(k get node node1 -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}')
for a in $ip; do
  case $a in *:*) a="[$a]" ;; esac
  ip netns exec ctl curl -gsS -m 5 "http://$a:8099/hostname" | grep -q client-node1 || die "outside to the host port at $a"
done
ok "host port from outside"

# Traffic while the agent is replaced: keep-alive and new connections, from both nodes, by name and by pod address.
remote=$(k get pods -l app=echo -o jsonpath='{.items[?(@.spec.nodeName=="node2")].status.podIP}')
load() { # container, seconds: prints failed requests
  k exec "$1" -c client -- sh -c "end=\$((\$(date +%s) + $2)); n=0; bad=0; while [ \$(date +%s) -lt \$end ]; do
    for u in http://echo/hostname http://$remote:8080/hostname; do n=\$((n + 1)); curl -sS -m 3 -o /dev/null \$u || bad=\$((bad + 1)); done
    curl -sS -m 5 -o /dev/null -o /dev/null -o /dev/null \$(yes http://echo/hostname | head -3) || bad=\$((bad + 1)); done; echo \$n requests, \$bad failed"
}
load client-node1 "${SMOKE_SECONDS:-45}" >"$D/load1" 2>&1 & l1=$!
load client-node2 "${SMOKE_SECONDS:-45}" >"$D/load2" 2>&1 & l2=$!
sleep 2
now=$(k -n kube-system get daemonset fairlead -o jsonpath='{.spec.template.spec.containers[0].image}'); now=${now##*:}
"$HERE/fairlead.sh" "$now-next" >/dev/null || die "upgrade"
ok "upgrade rolled out"
"$HERE/fairlead.sh" "$now" >/dev/null || die "downgrade"
ok "downgrade rolled out"
wait $l1 $l2 || die "load: $(cat "$D/load1" "$D/load2")"
for f in "$D/load1" "$D/load2"; do
  tail -1 "$f"
  grep -q ', 0 failed$' "$f" || die "requests failed while the agent was replaced: $(cat "$f")"
done
ok "no request failed while the agent was replaced"
k delete -f "$HERE/smoke.yaml" --wait=false >/dev/null
echo "$passed passed, 0 failed"

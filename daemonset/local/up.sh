#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# up.sh [NODES]: a real Kubernetes cluster on this machine without Docker: the control plane and each
# node's containerd + kubelet live in network namespaces joined by one bridge. No kube-proxy, no CNI: the
# nodes stay NotReady until a network is installed (ref.sh, or Fairlead).
#   ctl 10.88.0.1 (API server :6443, etcd) · node1 10.88.0.11 · node2 10.88.0.12 · …
#   pods 10.244.0.0/16 + fd00:10:244::/56 (a /24 and a /64 per node) · services 10.96.0.0/16 + fd00:10:96::/112
# Everything of a node is under $CLUSTER_DIR/run/nodeN: cni/bin, cni/net.d, c.sock, kubelet; its containers
# are under the cgroup /nodeN in every hierarchy, so cgroup BPF programs attach at <cgroup2>/nodeN.
set -euo pipefail
N=${1:-2}
HERE=$(cd "$(dirname "$0")" && pwd)
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run; B=$W/bin
[ -d "$D" ] && { echo "already up (or not cleaned): run down.sh" >&2; exit 1; }
mkdir -p "$D/log"
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

# nsenter, not 'ip netns exec': the latter mounts a fresh /sys, which hides cgroups and the BPF file system.
# A UTS namespace of its own gives each node its hostname, which host-network pods report. On the hybrid cgroup layout the
# node's own daemons join its cgroup v2 folder too, so that cgroup BPF programs see them as on a real node.
U=$(findmnt -t cgroup2 -n -o TARGET | head -1)
bg() { local l=$1 ns=$2; shift 2; setsid nohup nsenter --net=/var/run/netns/"$ns" unshare --uts sh -c "hostname $ns; [ -d $U/$ns ] && [ $U != /sys/fs/cgroup ] && echo \$\$ >$U/$ns/cgroup.procs; exec \"\$@\"" sh "$@" >"$D/log/$l.log" 2>&1 & echo $! >"$D/$l.pid"; }
addns() { # name, last byte
  ip netns add "$1"; ip link add eth0 netns "$1" type veth peer name "p-$1" netns fabric
  ip -n fabric link set "p-$1" master br0 up; ip -n "$1" link set lo up
  ip -n "$1" addr add "10.88.0.$2/24" dev eth0; ip -n "$1" addr add "fd00:10:88::$2/64" dev eth0 nodad
  ip -n "$1" link set eth0 up
  ip -n "$1" route add default via 10.88.0.254; ip -n "$1" -6 route add default via fd00:10:88::fe
  ip netns exec "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
}
ip netns add fabric; ip -n fabric link add br0 type bridge; ip -n fabric link set br0 up; ip -n fabric link set lo up
ip -n fabric addr add 10.88.0.254/24 dev br0; ip -n fabric addr add fd00:10:88::fe/64 dev br0 nodad
addns ctl 1

echo "admintoken,admin,admin,system:masters" >"$D/tokens.csv"
openssl genrsa -out "$D/sa.key" 2048 2>/dev/null; openssl rsa -in "$D/sa.key" -pubout -out "$D/sa.pub" 2>/dev/null
bg etcd ctl "$B/etcd" --data-dir "$D/etcd" --unsafe-no-fsync
bg apiserver ctl "$B/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --cert-dir="$D/certs" \
  --token-auth-file="$D/tokens.csv" --authorization-mode=Node,RBAC --allow-privileged=true \
  --service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112 --service-account-issuer=https://kubernetes.default.svc \
  --api-audiences=https://kubernetes.default.svc --service-account-key-file="$D/sa.pub" \
  --service-account-signing-key-file="$D/sa.key" --advertise-address=10.88.0.1 --bind-address=0.0.0.0 \
  --kubelet-preferred-address-types=InternalIP
cat >"$D/kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.88.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: admintoken}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
K
export KUBECONFIG=$D/kubeconfig
for _ in $(seq 90); do ip netns exec ctl "$B/kubectl" get --raw /readyz >/dev/null 2>&1 && break; sleep 1; done
bg kcm ctl "$B/kube-kcm" --kubeconfig="$D/kubeconfig" --allocate-node-cidrs=true \
  --cluster-cidr=10.244.0.0/16,fd00:10:244::/56 --service-account-private-key-file="$D/sa.key" \
  --root-ca-file="$D/certs/apiserver.crt" --use-service-account-credentials=true --leader-elect=false
bg sched ctl "$B/kube-sched" --kubeconfig="$D/kubeconfig" --leader-elect=false

for i in $(seq "$N"); do
  n=node$i; addns "$n" $((10 + i)); mkdir -p "$D/$n"/{cni/net.d,cni/bin,containerd,state,kubelet,logs}
  cp "$B/cni/loopback" "$D/$n/cni/bin/"
  for c in /sys/fs/cgroup/*/; do mkdir -p "$c$n"; done
  for f in cpuset.cpus cpuset.mems; do [ -f "/sys/fs/cgroup/cpuset/$f" ] && cat "/sys/fs/cgroup/cpuset/$f" >"/sys/fs/cgroup/cpuset/$n/$f"; done
  cat >"$D/$n/containerd.toml" <<C
version = 3
root = "$D/$n/containerd"
state = "$D/$n/state"
[grpc]
  address = "$D/$n/c.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "registry.k8s.io/pause:3.10.2"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$D/$n/cni/bin"]
    conf_dir = "$D/$n/cni/net.d"
C
  cat >"$D/$n/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: true
cgroupRoot: /$n
enforceNodeAllocatable: []
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://$D/$n/c.sock
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /dev/null
podLogsDir: $D/$n/logs
maxPods: 250
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
C
  bg "containerd-$n" "$n" env PATH="$B:$PATH" "$B/containerd" -c "$D/$n/containerd.toml"
done
for i in $(seq "$N"); do
  n=node$i
  for _ in $(seq 30); do [ -S "$D/$n/c.sock" ] && "$B/ctr" -a "$D/$n/c.sock" version >/dev/null 2>&1 && break; sleep 0.3; done
  for t in "$W"/img/*.tar; do "$B/ctr" -a "$D/$n/c.sock" -n k8s.io image import "$t" >/dev/null; done
  bg "kubelet-$n" "$n" "$B/kube-kubelet" --kubeconfig="$D/kubeconfig" --config="$D/$n/kubelet.yaml" \
    --root-dir="$D/$n/kubelet" --hostname-override="$n" --node-ip="10.88.0.$((10 + i)),fd00:10:88::$((10 + i))" --cert-dir="$D/$n/pki" -v=2
done
for i in $(seq "$N"); do
  for _ in $(seq 60); do [ -n "$(ip netns exec ctl "$B/kubectl" get node "node$i" -o jsonpath='{.spec.podCIDRs}' 2>/dev/null)" ] && break; sleep 0.5; done
done
ip netns exec ctl "$B/kubectl" apply -f "$HERE/coredns.yaml" >/dev/null
echo "up: export KUBECONFIG=$D/kubeconfig; ip netns exec ctl $B/kubectl get nodes"

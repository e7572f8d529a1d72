#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build a real Kubernetes (control plane, kubelet, kubectl, kube-proxy, agnhost, e2e.test) from its
# Go modules, plus CoreDNS, the reference CNI plugins and the container images the e2e suite names.
# Idempotent: what is already built is kept. Cold: about 12 minutes on 2 cores; warm: seconds.
#   setup.sh            everything but e2e.test
#   setup.sh apiserver  kube-apiserver and etcd alone, for the tests of pkg/k8s
#   setup.sh e2e        e2e.test as well (3.5 minutes more)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; B=$W/bin
mkdir -p "$B" "$W/img"
K8S=v1.36.3
unset CGO_ENABLED

if [ "${1:-}" = apiserver ]; then
  cd "$HERE"; [ -x "$B/kube-apiserver" ] || { echo "build kube-apiserver"; go build -o "$B/kube-apiserver" ./apiserver; }
  [ -x "$B/etcd" ] || { echo "build etcd"; go build -o "$B/etcd" ./etcd; }
  exit 0
fi
"$HERE/deps.sh" runc:runc debootstrap:debootstrap nftables:nft iptables:iptables curl:curl iproute2:ip \
  iputils-ping:ping conntrack:conntrack iperf3:iperf3 tcpdump:tcpdump openssl:openssl jq:jq gcc:gcc

cd "$HERE"
[ -x "$B/etcd" ] || { echo "build etcd"; go build -o "$B/etcd" ./etcd; } # Debian's cannot stream lists
for p in apiserver kcm sched kubelet proxy; do
  [ -x "$B/kube-$p" ] || { echo "build kube-$p"; go build -o "$B/kube-$p" "./$p"; }
done
[ -x "$B/kubectl" ] || { echo "build kubectl"; go build -o "$B/kubectl" k8s.io/kubernetes/cmd/kubectl; }
[ -x "$B/agnhost" ] || { echo "build agnhost"; CGO_ENABLED=0 go build -o "$B/agnhost" k8s.io/kubernetes/test/images/agnhost; }
if [ "${1:-}" = e2e ] && [ ! -x "$B/e2e.test" ]; then
  echo "build e2e.test"; go test -c -o "$B/e2e.test" k8s.io/kubernetes/test/e2e
fi

if [ ! -x "$B/coredns" ]; then
  echo "build coredns"; mkdir -p "$W/src/coredns" && cd "$W/src/coredns"
  cat > main.go <<'G'
package main

import (
	_ "github.com/coredns/coredns/core/plugin"
	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
G
  [ -f go.mod ] || go mod init coredns-build >/dev/null 2>&1
  go get github.com/coredns/coredns@v1.15.0 >/dev/null 2>&1; go mod tidy >/dev/null 2>&1
  CGO_ENABLED=0 go build -o "$B/coredns" .
fi

if [ ! -x "$B/containerd" ]; then # Debian's 1.6 does not know CNI 1.1 (STATUS, GC)
  echo "build containerd"; mkdir -p "$W/src/containerd" && cd "$W/src/containerd"
  C=github.com/containerd/containerd/v2
  [ -f go.mod ] || go mod init containerd-build >/dev/null 2>&1
  { echo '//go:build tools'; echo 'package p'; echo 'import ('; for p in containerd containerd-shim-runc-v2 ctr; do echo "_ \"$C/cmd/$p\""; done; echo ')'; } > tools.go
  go get $C@v2.3.7 >/dev/null 2>&1; go mod tidy >/dev/null 2>&1
  go build -ldflags "-X $C/version.Version=v2.3.7" -o "$B/" $C/cmd/containerd $C/cmd/containerd-shim-runc-v2 $C/cmd/ctr
fi

mkdir -p "$B/cni"
if [ ! -x "$B/cni/portmap" ]; then
  echo "build reference CNI plugins"; mkdir -p "$W/src/cni" && cd "$W/src/cni"
  [ -f go.mod ] || go mod init cni-build >/dev/null 2>&1
  P=github.com/containernetworking/plugins/plugins
  { echo '//go:build tools'; echo 'package p'; echo 'import ('; for p in main/bridge main/ptp main/loopback ipam/host-local meta/portmap meta/bandwidth; do echo "_ \"$P/$p\""; done; echo ')'; } > tools.go
  go get github.com/containernetworking/plugins@v1.9.1 >/dev/null 2>&1; go mod tidy >/dev/null 2>&1
  for p in main/bridge main/ptp main/loopback ipam/host-local meta/bandwidth meta/portmap; do CGO_ENABLED=0 go build -o "$B/cni/" "$P/$p"; done
fi

# Images. The e2e suite's images are agnhost and a few shells; one Debian root file system serves them all.
cd "$W/img"
M=$(cd "$HERE" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
R=registry.k8s.io
if [ ! -f agnhost.tar ]; then
  echo "make images"
  (cd "$HERE" && go build -o "$W/bin/image" ./image)
  image() { local out=$1; shift; "$W/bin/image" -o "$out.new" "$@" && mv "$out.new" "$out"; }
  MIRROR=$(grep -hE '^URIs' /etc/apt/sources.list.d/debian.sources | head -1 | awk '{print $2}')
  [ -d rootfs/usr ] || debootstrap --variant=minbase \
    --include=curl,netcat-openbsd,iproute2,iputils-ping,bind9-host,dnsutils,procps,wget,iperf,util-linux,conntrack,iptables,nftables bookworm rootfs "$MIRROR" >/dev/null
  rm -rf rootfs/var/cache/apt/* rootfs/var/lib/apt/lists/* rootfs/usr/share/{doc,man,locale}
  install -m755 "$B/agnhost" rootfs/agnhost; ln -sf agnhost rootfs/agnhost-2; mkdir -p rootfs/uploads
  # as in the original: a wget that does not retry, and CoreDNS for the DNS tests' own server
  printf '#!/bin/sh\nexec /usr/bin/wget --tries=1 "$@"\n' >rootfs/usr/local/bin/wget; chmod 755 rootfs/usr/local/bin/wget
  install -m755 "$B/coredns" rootfs/coredns
  cp "$M"/test/images/agnhost/porter/localhost.{crt,key} rootfs/
  mkdir -p pauseroot dnsroot regroot
  (cd "$HERE" && CGO_ENABLED=0 go build -o "$W/img/regroot/regression-issue-74839" k8s.io/kubernetes/test/images/regression-issue-74839)
  gcc -Os -static -o pauseroot/pause -DVERSION=3.10 "$M/build/pause/linux/pause.c"
  cp "$B/coredns" dnsroot/coredns
  image pause.tar -root pauseroot -entrypoint '["/pause"]' -tag $R/pause:3.10.2,$R/pause:3.10
  image coredns.tar -root dnsroot -entrypoint '["/coredns"]' -tag $R/coredns/coredns:v1.12.0
  image regression.tar -root regroot -entrypoint '["/regression-issue-74839"]' -tag $R/e2e-test-images/regression-issue-74839:1.4
  image busybox.tar -root rootfs -cmd '["sh"]' -tag $R/e2e-test-images/busybox:1.37.0-1,$R/build-image/distroless-iptables:v0.9.6
  image agnhost.tar -root rootfs -entrypoint '["/agnhost"]' -cmd '["pause"]' \
    -tag $R/e2e-test-images/agnhost:2.63.0,$R/e2e-test-images/agnhost:2.45,$R/e2e-test-images/glibc-dns-testing:2.0.0
fi
echo "ready: $W (Kubernetes $K8S)"

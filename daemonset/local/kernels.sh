#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kernels.sh [VERSION...]: run the agent and the packet and namespace tests on Debian's kernels in emulation (qemu, no KVM needed): 6.12,
# and 6.1, where filters and netlink stand in for the tcx and sock_destroy that it lacks. Then see the agent refuse a kernel that lacks what
# nothing can stand in for: 6.1 without the modules of these features. Emulation is for right or wrong, never for speed.
#   PACKAGES="bpf node" RUN=TestPod FLAGS=-test.v kernels.sh 6.1     some of the tests on one kernel
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); TOP=$(cd "$HERE/../.." && pwd)
export CGO_ENABLED=0
"$HERE/deps.sh" iproute2:tc
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
cd "$TOP"
mkdir -p "$stage"/{manifests,usr/sbin,opt/iproute2,cni}
cp "$HERE/vm-tests.sh" "$stage/"
go build -o "$stage/fairleadd" ./cmd/fairleadd
cat >"$stage/manifests/node.yaml" <<'Y'
apiVersion: v1
kind: Node
metadata: {name: node}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
Y
# Tests look at devices with them: busybox knows neither all of ip nor tc's clsact, and its shell prefers its own. Their libraries are
# apart: the static busybox might load those that it finds at the usual place.
for tool in ip tc sh; do
  real=$(command -v $tool); cp "$real" "$stage/opt/iproute2/"
  ldd "$real" | grep -o '/[^ ]*' | xargs cp -L -t "$stage/opt/iproute2/"
  printf '#!/bin/sh\nexec /opt/iproute2/ld-linux-*.so.* --library-path /opt/iproute2 /opt/iproute2/%s "$@"\n' $tool >"$stage/usr/sbin/$tool"
  chmod +x "$stage/usr/sbin/$tool"
done

echo "== 6.1 without the modules of filters and VXLAN"
MODULES="veth dummy" "$HERE/vm.sh" 6.1 "$stage" sh /vm-tests.sh refuse clsact vxlan-external

go build -o "$stage/cni/" ./plugins/fairlead-cni
for p in ${PACKAGES:-bpf link node masquerade flow endpoint}; do
  go test -c -o "$stage/$p.test" "./pkg/$p"
  mkdir -p "$stage/src/pkg/$p"
  [ ! -d "pkg/$p/testdata" ] || cp -r "pkg/$p/testdata" "$stage/src/pkg/$p/"
done
mkdir -p "$stage/src/bpf"; cp bpf/README.md "$stage/src/bpf/"
status=0
for v in "${@:-6.12 6.1}"; do for k in $v; do
  echo "== Debian's kernel $k"
  TIMEOUT=3600 "$HERE/vm.sh" "$k" "$stage" env RUN="${RUN:-.}" FLAGS="${FLAGS:-}" sh /vm-tests.sh tests || status=1
done; done
exit $status

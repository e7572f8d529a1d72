#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kernels.sh [VERSION...]: run the packet and namespace tests on Debian's kernels in emulation (qemu, no KVM needed), where SCTP sockets,
# WireGuard and netkit exist, and the tcx and sock_destroy of 6.1 do not. Emulation is for right or wrong, never for speed.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); TOP=$(cd "$HERE/../.." && pwd)
export CGO_ENABLED=0
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
cd "$TOP"
for p in bpf link node masquerade flow endpoint; do
  go test -c -o "$stage/$p.test" "./pkg/$p"
  [ -d "pkg/$p/testdata" ] && { mkdir -p "$stage/src/pkg/$p"; cp -r "pkg/$p/testdata" "$stage/src/pkg/$p/"; }
done
mkdir -p "$stage/src/bpf"; cp bpf/README.md "$stage/src/bpf/"
cp "$HERE/vm-tests.sh" "$stage/"
go build -o "$stage/fairleadd" ./cmd/fairleadd
status=0
for v in "${@:-6.12 6.1}"; do for k in $v; do
  echo "== Debian's kernel $k"
  case $k in
    6.1) "$HERE/vm.sh" "$k" "$stage" sh /vm-tests.sh refuse || status=1 ;;
    *) TIMEOUT=3000 "$HERE/vm.sh" "$k" "$stage" sh /vm-tests.sh all || status=1 ;;
  esac
done; done
exit $status

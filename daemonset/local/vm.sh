#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# vm.sh VERSION DIR COMMAND...: boot Debian's kernel of that version (6.1, 6.12) in qemu (software emulation, no KVM needed),
# with the files of DIR as its root and COMMAND run by a shell there as root; prints its output, exits with its status.
#   vm.sh 6.12 ./stage /bpf.test -test.v
# Programs in DIR must be static (CGO_ENABLED=0; go test -c). MODULES names what is loaded first. Boots in about 4 s.
set -euo pipefail
V=$1 DIR=$2; shift 2
MODULES=${MODULES:-crc32c_generic veth vxlan bridge sctp wireguard dummy geneve ipip ip_vs sch_ingress cls_bpf nf_tables nft_masq nft_ct nft_chain_nat inet_diag tcp_diag udp_diag nfnetlink xfrm_user}
W=${KERNELS_DIR:-$HOME/.cache/fairlead-kernels}; mkdir -p "$W"; DIR=$(cd "$DIR" && pwd)
"$(dirname "$0")/deps.sh" qemu-system-x86:qemu-system-x86_64 cpio:cpio kmod:depmod xz-utils:xz file:file
file -L /bin/busybox 2>/dev/null | grep -q static || { apt-get update -q >/dev/null; apt-get install -y -q --no-install-recommends busybox-static >/dev/null; }

K=$W/$V
if [ ! -e "$K/vmlinuz" ]; then
  case $V in 6.1) meta=linux-image-amd64 ;; *) meta=linux-image-$V-amd64 ;; esac
  pkg=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ {print $2; exit}')
  mkdir -p "$K" && cd "$K" && apt-get download -q "$pkg" >/dev/null 2>&1 && dpkg -x "$pkg"_*.deb . && rm -f ./*.deb
  mv boot/vmlinuz-* vmlinuz; rel=$(ls lib/modules); find lib/modules -name '*.ko.xz' -exec xz -d {} +; depmod -b "$K" "$rel"
fi
rel=$(ls "$K/lib/modules"); ird=$(mktemp -d); trap 'rm -rf "$ird"' EXIT
mkdir -p "$ird"/{bin,proc,sys,dev,tmp,run,etc,mods}; cp -a "$DIR/." "$ird/"; cp /bin/busybox "$ird/bin/"
list() { # a module's dependencies, then itself
  local line; line=$(grep -E "/$1\.ko:" "$K/lib/modules/$rel/modules.dep" || true); [ -n "$line" ] || return 0
  echo "$line" | awk -F: '{n = split($2, d, " "); for (i = n; i > 0; i--) print d[i]; print $1}'
}
# crc32c is a soft dependency that modules.dep does not name.
for m in $MODULES; do list "$m"; done | awk '!s[$0]++' >"$ird/mods/order.full"
n=0; : >"$ird/mods/order"; while read -r f; do n=$((n + 1)); cp "$K/lib/modules/$rel/$f" "$ird/mods/$n.ko"; echo "$n.ko" >>"$ird/mods/order"; done <"$ird/mods/order.full"
printf '%q ' "$@" >"$ird/command"
cat >"$ird/init" <<'I'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/tmp
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp; mount -t tmpfs none /run
mount -t bpf none /sys/fs/bpf; mount -t cgroup2 none /sys/fs/cgroup; mount -t tracefs none /sys/kernel/tracing 2>/dev/null
echo 1 >/proc/sys/net/core/bpf_jit_enable; ip link set lo up
while read -r m; do insmod /mods/$m || echo "module $m not loaded"; done </mods/order
sh /command; echo "EXIT-STATUS $?"
poweroff -f
I
chmod +x "$ird/init"; (cd "$ird" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$ird.gz"
timeout "${TIMEOUT:-600}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${MEM:-2048}" -nographic -no-reboot -nic none \
  -kernel "$K/vmlinuz" -initrd "$ird.gz" -append "console=ttyS0 quiet panic=-1" </dev/null 2>&1 | sed -u 's/\r$//' | tee "$ird.log" | sed -u '/^EXIT-STATUS/,$d; 1,/Booting from ROM/d'
rm -f "$ird.gz"; s=$(awk '/^EXIT-STATUS/ {print $2}' "$ird.log" | tail -1); rm -f "$ird.log"; exit "${s:-125}"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# down.sh: stop the cluster of up.sh and remove everything that it made.
W=${CLUSTER_DIR:-$HOME/.cache/fairlead-cluster}; D=$W/run; PATH="$W/bin:$PATH"
stop() { for f in "$@"; do [ -f "$f" ] && kill "$(cat "$f")" 2>/dev/null; done; }
stop "$D"/kubelet*.pid "$D"/proxy*.pid "$D"/agent*.pid
for s in "$D"/node*/c.sock; do
  [ -S "$s" ] || continue
  for t in $(ctr -a "$s" -n k8s.io task ls -q 2>/dev/null); do ctr -a "$s" -n k8s.io task kill -s 9 "$t" 2>/dev/null; done
done
sleep 1; stop "$D"/*.pid; sleep 1
for ns in $(ip netns list | awk '{print $1}'); do
  case $ns in ctl | fabric | node[0-9]*) for p in $(ip netns pids "$ns"); do kill -9 "$p" 2>/dev/null; done; ip netns del "$ns" ;; esac
done
for ns in $(ip netns list | awk '/^cni-/ {print $1}'); do [ -z "$(ip netns pids "$ns")" ] && ip netns del "$ns"; done
mount | awk -v d="$D/" 'index($3, d) == 1 {print $3}' | sort -r | while read -r m; do umount -l "$m"; done
for c in /sys/fs/cgroup/*/node[0-9]*; do [ -d "$c" ] && find "$c" -depth -type d -exec rmdir {} + 2>/dev/null; done
rm -rf /sys/fs/bpf/fairlead-node[0-9]*
rm -rf "$D"
exit 0

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# deps.sh PACKAGE:COMMAND ...: install the Debian packages whose commands are missing.
set -euo pipefail
need=()
for p in "$@"; do PATH=$PATH:/usr/sbin:/sbin command -v "${p##*:}" >/dev/null || need+=("${p%%:*}"); done
((${#need[@]})) || exit 0
command -v apt-get >/dev/null || { echo "missing, please install: ${need[*]}" >&2; exit 1; }
apt-get update -q >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}" >/dev/null

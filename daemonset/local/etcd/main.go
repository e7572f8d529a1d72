// SPDX-License-Identifier: Apache-2.0

// The etcd of the local cluster: Debian's is too old to stream lists (KEP-3157 needs 3.4.31 or 3.5.13).
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime/pprof"
)

// startProfile writes a CPU profile to a file until the returned function is called; an empty name writes none.
func startProfile(name string) (finish func() error, err error) {
	if name == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

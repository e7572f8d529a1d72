// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Binaries are paths of the programs that a network runs.
type Binaries struct {
	Agent  string // fairleadd
	CNI    string // fairlead-cni
	Helper string // pkg/testnet/helper
}

// Build compiles the three programs into a directory. It works in the module's source tree only; several networks may share the result.
func Build(ctx context.Context, dir string) (Binaries, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("build programs: %w", err)
	}
	const module = "github.com/fairlead/fairlead/"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", module+"cmd/fairleadd", module+"plugins/fairlead-cni", module+"pkg/testnet/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("build programs: %w: %s", err, bytes.TrimSpace(out))
	}
	return Binaries{
		Agent:  filepath.Join(dir, "fairleadd"),
		CNI:    filepath.Join(dir, "fairlead-cni"),
		Helper: filepath.Join(dir, "helper"),
	}, nil
}

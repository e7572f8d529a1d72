// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Names that runtimes see.
const (
	BinaryName = "fairlead-cni"
	ConfName   = "05-fairlead.conflist" // the first name wins in containerd: before those of others
)

// InstallBinary places the CNI binary in a directory: written aside, synced, renamed and read back, so that no runtime ever executes half
// of it and a running one is not in the way. Nothing is written when the same bytes are there. It says whether it wrote.
func InstallBinary(from, dir string) (wrote bool, err error) {
	want, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("read CNI binary: %w", err)
	}
	if !bytes.HasPrefix(want, []byte("\x7fELF")) {
		return false, fmt.Errorf("read CNI binary %s: not an ELF file", from)
	}
	path := filepath.Join(dir, BinaryName)
	if same(path, want, 0o755) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("make CNI binary directory: %w", err)
	}
	if err := writeAtomic(path, want, 0o755); err != nil {
		return false, err
	}
	if err := syncDir(dir); err != nil {
		return false, fmt.Errorf("sync %s: %w", dir, err)
	}
	if !same(path, want, 0o755) {
		return false, fmt.Errorf("install %s: it reads back different", path)
	}
	return true, nil
}

// Conf returns the network configuration list. cniVersion is one that old runtimes know; those that know cniVersions take the highest that
// both have.
func Conf(runDir string) ([]byte, error) {
	p, err := json.MarshalIndent(map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"},
		"name":        "fairlead",
		"plugins": []any{map[string]any{
			"type":   BinaryName,
			"runDir": runDir,
			"capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "mac": true, "ips": true,
				"io.kubernetes.cri.pod-annotations": true},
		}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(p, '\n'), nil
}

// WriteConf places the configuration list. containerd looks again only at a write, a rename or a removal in the directory, not when a file
// is created: the file is renamed within the directory, and another one written and removed there to be sure. The directory is never
// removed, since the runtime watches it. Nothing is written when the same configuration is there. It says whether it wrote.
func WriteConf(dir, runDir string) (wrote bool, err error) {
	want, err := Conf(runDir)
	if err != nil {
		return false, err
	}
	path := filepath.Join(dir, ConfName)
	if same(path, want, 0o644) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("make CNI configuration directory: %w", err)
	}
	if err := writeAtomic(path, want, 0o644); err != nil {
		return false, err
	}
	if err := syncDir(dir); err != nil {
		return false, fmt.Errorf("sync %s: %w", dir, err)
	}
	nudge := filepath.Join(dir, ".fairlead.nudge")
	if err := os.WriteFile(nudge, []byte("look again\n"), 0o600); err != nil {
		return true, fmt.Errorf("wake the runtime: %w", err)
	}
	if err := os.Remove(nudge); err != nil {
		return true, fmt.Errorf("wake the runtime: %w", err)
	}
	return true, nil
}

// Rivals returns the configurations of other plugins that a runtime would read before ours: with one of them in the directory pods do not
// come to Fairlead.
func Rivals(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration directory: %w", err)
	}
	var rivals []string
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); f.Name() < ConfName && slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			rivals = append(rivals, f.Name())
		}
	}
	return rivals, nil
}

// Uninstall removes what InstallBinary and WriteConf placed; an empty directory name leaves that part alone. Whatever is absent is no error.
func Uninstall(binDir, confDir string) error {
	var errs []error
	for _, f := range []struct{ dir, name string }{{confDir, ConfName}, {binDir, BinaryName}} {
		if f.dir == "" {
			continue
		}
		if err := os.Remove(filepath.Join(f.dir, f.name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove %s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

// same says whether a file has these bytes and this mode.
func same(path string, want []byte, mode os.FileMode) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != mode {
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, want)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

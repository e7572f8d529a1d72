// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A DEL that finds no agent leaves a tombstone in the run directory, one file per attachment, and succeeds; the agent does it when it
// starts, and looks again every few seconds, so a DEL that just missed its start is done too. The run directory is the right place: after
// a reboot nothing of an endpoint is left, and every record is looked at anyway. One file is one rename, so no lock is needed.
const tombstoneDir = "tombstones"

// maxTombstones bounds the directory: more than a node has endpoints.
const maxTombstones = 8192

// Tombstone is a DEL to be done.
type Tombstone struct {
	Attachment
	Boot string        `json:"boot"` // the kernel's boot id when it was written
	At   time.Duration `json:"at"`   // time since boot when it was written
	path string
}

// WriteTombstone leaves a tombstone.
func WriteTombstone(runDir string, a Attachment) error {
	dir := filepath.Join(runDir, tombstoneDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make tombstone directory: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	p, err := json.Marshal(Tombstone{Attachment: a, Boot: strings.TrimSpace(string(boot)), At: sinceBoot()})
	if err != nil {
		return fmt.Errorf("encode tombstone: %w", err)
	}
	path := filepath.Join(dir, a.LinkName())
	if _, err := os.Lstat(path); err != nil {
		if all, err := os.ReadDir(dir); err == nil && len(all) >= maxTombstones {
			return fmt.Errorf("write tombstone: %s holds %d already", dir, len(all))
		}
	}
	return writeAtomic(path, p, 0o600)
}

// ReadTombstones returns the tombstones of a run directory. One that cannot be read is removed and part of the error.
func ReadTombstones(runDir string) (all []Tombstone, err error) {
	dir := filepath.Join(runDir, tombstoneDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tombstones: %w", err)
	}
	var errs []error
	for _, f := range files {
		if !IsLinkName(f.Name()) {
			continue // one that is being written
		}
		path := filepath.Join(dir, f.Name())
		p, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read tombstone: %w", err))
			continue
		}
		s := Tombstone{path: path}
		if err := json.Unmarshal(p, &s); err != nil || s.LinkName() != f.Name() {
			errs = append(errs, fmt.Errorf("read tombstone %s: damaged, removed: %w", path, errors.Join(err, os.Remove(path))))
			continue
		}
		all = append(all, s)
	}
	return all, errors.Join(errs...)
}

// Remove says that the tombstone is done.
func (s Tombstone) Remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove tombstone: %w", err)
	}
	return nil
}

const aliveName = "agent.alive"

// aliveFor is how long STATUS trusts an agent that was seen alive: a restart must not make the node NotReady.
const aliveFor = 30 * time.Second

// WriteAlive notes that an agent is alive at a time since boot.
func WriteAlive(runDir string, now time.Duration) error {
	path := filepath.Join(runDir, aliveName)
	if err := os.WriteFile(path, strconv.AppendInt(nil, int64(now), 10), 0o600); err != nil {
		return fmt.Errorf("write sign of life: %w", err)
	}
	return nil
}

// WasAlive says whether an agent was alive a moment ago.
func WasAlive(runDir string) bool {
	p, err := os.ReadFile(filepath.Join(runDir, aliveName))
	if err != nil {
		return false
	}
	at, err := strconv.ParseInt(string(p), 10, 64)
	age := sinceBoot() - time.Duration(at)
	return err == nil && age >= 0 && age < aliveFor
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // cannot fail: every kernel that runs our programs has the clock
	}
	return time.Duration(ts.Nano())
}

// writeAtomic replaces a file in one step. Its name while it is written is in the same directory, unique, and no configuration name.
func writeAtomic(path string, p []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
)

// Where the parts of a network are; each name goes on with the id: process number, its start time, a count.
const (
	prefix   = "fairlead-net-"
	bpffs    = "/sys/fs/bpf"
	run      = "/run" // short: a unix socket's path has at most 107 bytes
	keepMark = "keep"
)

func runDir(id string) string { return filepath.Join(run, prefix+id) }

// newID makes the directory of a new network and returns its id.
func newID() (string, error) {
	started, err := startTime(os.Getpid())
	if err != nil {
		return "", err
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d-%s-%d", os.Getpid(), started, i)
		if err := os.Mkdir(runDir(id), 0o755); err == nil || !errors.Is(err, fs.ErrExist) {
			return id, err
		}
	}
}

// startTime tells one process from another that has its number later: field 22 of /proc/PID/stat, in clock ticks since boot. A process that
// has ended and that nobody waited for is an error like one that is not there.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the name in parentheses and may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) > 0 && (fields[0] == "Z" || fields[0] == "X") {
		return "", os.ErrProcessDone
	}
	if len(fields) < 20 {
		return "", fmt.Errorf("read start time of process %d: %q", pid, b)
	}
	return fields[19], nil
}

// cgroupRoot finds where cgroup v2 is mounted.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("find cgroup v2: not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// Down removes the networks of processes that are gone, kept ones too.
func Down() error { return removeLeftovers(true) }

// removeLeftovers removes networks whose process is gone.
func removeLeftovers(kept bool) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	var ids []string
	for _, dir := range []string{run, root, bpffs} {
		found, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
		for _, f := range found {
			if id := strings.TrimPrefix(filepath.Base(f), prefix); !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	var errs []error
	for _, id := range ids {
		owner, rest, _ := strings.Cut(id, "-")
		started, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(owner)
		if err != nil {
			continue // no name of ours
		}
		if now, err := startTime(pid); err == nil && now == started {
			continue
		}
		if _, err := os.Stat(filepath.Join(runDir(id), keepMark)); err == nil && !kept {
			continue
		}
		errs = append(errs, remove(id))
	}
	return errors.Join(errs...)
}

// remove takes a network away by its name alone: processes, pinned objects, mounts, files. What is not there is no error.
func remove(id string) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	errs := []error{removeCgroup(filepath.Join(root, prefix+id))}
	pins := filepath.Join(bpffs, prefix+id)
	nodes, _ := os.ReadDir(pins)
	for _, n := range nodes {
		errs = append(errs, bpf.Remove(filepath.Join(pins, n.Name())))
	}
	if err := os.Remove(pins); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	namespaces, _ := filepath.Glob(filepath.Join(runDir(id), "ns", "*"))
	for _, ns := range namespaces {
		if err := unix.Unmount(ns, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", ns, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(runDir(id)))...)
}

// removeCgroup kills what runs in a cgroup and below and removes it.
func removeCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", dir, err)
	}
	var dirs []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	// Killed processes leave their cgroup when they are gone, and nobody is told who waits for a whole tree.
	deadline := time.Now().Add(10 * time.Second)
	for _, d := range slices.Backward(dirs) {
		for {
			err := os.Remove(d)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return nil
}

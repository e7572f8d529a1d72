// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
)

// Names inside the run directory.
const (
	agentSocket = "agent.sock"
	querySocket = "query.sock"
	lockFile    = "agent.lock"
)

// lockRunDir makes the directory and takes it for this process: two agents on the same sockets and pins would undo each other's work.
// The kernel gives the lock back however the process ends.
func lockRunDir(dir string) (release func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make --run-dir: %w", err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of --run-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, fmt.Errorf("lock %s: another fairleadd (pid %s) uses --run-dir %s: give each agent its own --run-dir, --state-dir and --bpffs-dir",
			path, strings.TrimSpace(string(holder)), dir)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// checkBPFFS makes sure that dir can hold pins: without a bpffs below it nothing would survive the agent.
func checkBPFFS(dir string) error {
	existing := dir
	for {
		var s unix.Statfs_t
		err := unix.Statfs(existing, &s)
		if err == nil {
			if s.Type != unix.BPF_FS_MAGIC {
				return fmt.Errorf("check --bpffs-dir %s: %s is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or name another folder", dir, existing)
			}
			return nil
		}
		if !errors.Is(err, unix.ENOENT) || existing == "/" {
			return fmt.Errorf("check --bpffs-dir %s: %w", existing, err)
		}
		existing = filepath.Dir(existing)
	}
}

// cgroupRoot returns the configured folder if it is on cgroup v2, or else where the mount table has a cgroup v2.
func cgroupRoot(configured, mountinfo string) (string, error) {
	if configured == "" {
		return findCgroup2(mountinfo)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(configured, &s); err != nil {
		return "", fmt.Errorf("check --cgroup-root %s: %w", configured, err)
	}
	if s.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", fmt.Errorf("check --cgroup-root %s: not on a cgroup v2 hierarchy", configured)
	}
	return configured, nil
}

// findCgroup2 reads a mount table (proc(5), /proc/pid/mountinfo) for the root of the cgroup v2 hierarchy. A mount of a part of it would
// miss processes, so only a mount of the root counts; the shortest path wins. In a container with a cgroup namespace of its own "/" is that
// container's part, and a mount from the host shows as "/../..": the highest one is the root.
func findCgroup2(mountinfo string) (string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	heights := map[string]int{} // mount point -> how far above the cgroup namespace's root it begins
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, fs, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(fs)
		if !ok || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		point := unescape(fields[4])
		delete(heights, point) // a later mount hides the one before
		up := strings.ReplaceAll(fields[3], "/..", "")
		if kind[0] == "cgroup2" && (up == "" || up == "/") {
			heights[point] = strings.Count(fields[3], "/..")
		}
	}
	found := ""
	for _, point := range slices.Sorted(maps.Keys(heights)) {
		if found == "" || heights[point] > heights[found] || heights[point] == heights[found] && len(point) < len(found) {
			found = point
		}
	}
	if found == "" {
		return "", fmt.Errorf("find cgroup v2: no cgroup2 mount in %s: mount one (mount -t cgroup2 none /sys/fs/cgroup) or name its folder with --cgroup-root", mountinfo)
	}
	return found, nil
}

// unescape turns the mount table's octal escapes of blanks and backslashes back.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// checkHost refuses a host on which the dataplane cannot work, by the names of all that it lacks, before anything is touched. It returns
// the cgroup of the socket programs.
func checkHost(c Config, log *slog.Logger) (cgroup string, err error) {
	cgroup, err = cgroupRoot(c.CgroupRoot, "/proc/self/mountinfo")
	features := bpf.Probe()
	if err := errors.Join(err, checkBPFFS(c.BPFFSDir), bpf.Missing(features)); err != nil {
		return "", err
	}
	for _, f := range features {
		if !f.OK() {
			log.Info("kernel lacks a feature, another way is taken", "feature", f.Name, "for", f.What, "error", f.Err)
		}
	}
	return cgroup, nil
}

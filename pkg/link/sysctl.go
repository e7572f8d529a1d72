// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sysctlRoot is a folder that shows the settings of the calling thread's network namespace. Container runtimes mount /proc/sys read-only
// into containers without all privileges; there the DaemonSet offers the same files of the host's procfs, which answer by the calling
// thread's namespace as well.
var sysctlRoot = sync.OnceValue(func() string {
	const own, hosts = "/proc/sys/net", "/host/proc/sys/net"
	var st unix.Statfs_t
	if err := unix.Statfs(own, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		return own
	}
	if _, err := os.Stat(hosts); err != nil {
		return own
	}
	return hosts
})

// Sysctl returns a setting below net, such as ("ipv4", "ip_forward"). The name is given in parts because device names may hold dots.
func (h *Handle) Sysctl(name ...string) (string, error) {
	var value string
	err := h.Do(func() error {
		b, err := os.ReadFile(sysctlPath(name))
		value = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl net.%s: %w", strings.Join(name, "."), err)
	}
	return value, nil
}

// SetSysctl gives a setting below net a value and returns the one it had; it writes nothing when they are equal, so that it also
// works where /proc/sys is read-only and the host is already set up.
func (h *Handle) SetSysctl(value string, name ...string) (old string, err error) {
	err = h.Do(func() error {
		path := sysctlPath(name)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if old = strings.TrimSpace(string(b)); old == value {
			return nil
		}
		return os.WriteFile(path, []byte(value), 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("set sysctl net.%s to %s: %w", strings.Join(name, "."), value, err)
	}
	return old, nil
}

func sysctlPath(name []string) string {
	return filepath.Join(append([]string{sysctlRoot()}, name...)...)
}
